import pickle
import subprocess
import sys

import pydantic
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchrec_mtl import registry
from torchrec_mtl.config.base import Config
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.load import ConfigError, dump, load_config, parse
from torchrec_mtl.config.text import read_yaml, write_yaml
from torchrec_mtl.config.training import TrainConfig

SECTIONS = "data:, features:, tasks:, bottom:, head:, gradient:, retrieval:, optim:, train:, init_from:, run_dir:"
BROKEN = {
    "": f"the file is empty; a run is a mapping of {SECTIONS}",
    "# nothing yet\n": f"the file is empty; a run is a mapping of {SECTIONS}",
    "- a\n": f"expected a mapping of {SECTIONS} (found [a])",
    "hello": f"expected a mapping of {SECTIONS} (found 'hello')",
    "train:\n\tepochs: 2\n": "line 2: a tab; indent with blanks (found 'epochs: 2')",
    "run_dir: a: b\n": "line 1: not YAML: mapping values are not allowed here (found 'run_dir: a: b')",
    "train: {epochs: 2\n": "line 2: not YAML: expected ',' or '}', but got the end, in what begins on line 1",
    "train: &a {b: *a}\n": "line 1: an alias (*name) stands inside what it refers to; remove it",
    "x: !!python/name:os.system\n": (
        "line 1: not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system' "
        "(found 'x: !!python/name:os.system')"
    ),
    "a: 1\n---\nb: 2\n": "line 2: not YAML: but found another document, in what begins on line 1 (found '---')",
}


def write(path, raw):
    path.write_text(raw if isinstance(raw, str) else write_yaml(raw))
    return path


@pytest.mark.parametrize(("text", "message"), BROKEN.items())
def test_what_is_no_mapping_of_sections_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "run.yaml", text))
    assert caught.value.problems == [message]


def test_a_missing_file_is_answered_with_the_nearest(tmp_path, raw):
    write(tmp_path / "run.yaml", raw)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "rum.yaml")
    assert caught.value.problems == [f"no such file. Did you mean '{tmp_path / 'run.yaml'}'?"]


def test_a_folder_and_a_binary_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory; give a YAML file"):
        load_config(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text in UTF-8; a config is a YAML file"):
        load_config(tmp_path / "x.yaml")


def test_keys_given_twice_are_found_beside_all_other_mistakes(tmp_path, raw):
    text = write_yaml(raw) + "train:\n  epochs: 1\n  seed: -1\n  epochs: 2\n"
    path = write(tmp_path / "run.yaml", text)
    line = len(text.splitlines())
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["data.batchsize=8", "tasks"])
    assert str(caught.value).splitlines() == [
        f"{path} with data.batchsize=8 tasks: 4 problems",
        f"  line {line}: key 'epochs' is given twice, first on line {line - 2}; remove one",
        "  override 'tasks': expected key.path=value, such as train.epochs=2",
        "  data.batchsize: unknown key. Did you mean 'batch_size'?",
        "  train.seed: expected a number of at least 0 (found -1)",
    ]


def test_merge_keys_are_not_keys_given_twice():
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}") == ({"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}, [])


def test_an_override_of_an_alias_changes_one_place_only(tmp_path, raw):
    text = write_yaml({**raw, "tasks": None}).replace("tasks: null", "")
    tasks = "tasks:\n- {name: a, kind: binary, label: a, loss: &l {type: focal}}\n"
    tasks += "- {name: b, kind: binary, label: b, loss: *l}\n"
    config = load_config(write(tmp_path / "run.yaml", text + tasks), ["tasks.a.loss.gamma=3"])
    assert [task.loss.gamma for task in config.tasks] == [3.0, 2.0]


def test_the_preparing_script_lies_beside_the_file(tmp_path, raw, monkeypatch):
    raw["data"]["prepare"] = "prepare.py"
    path = write(tmp_path / "run.yaml", raw)
    monkeypatch.chdir(tmp_path.parent)
    config = load_config(f"{tmp_path.name}/{path.name}")
    assert config.data.prepare == str(tmp_path / "prepare.py")


def test_losses_bottom_and_rule_have_defaults(raw):
    for task in raw["tasks"]:
        del task["loss"]
    del raw["bottom"], raw["gradient"]
    config = parse(raw)
    assert [task.loss.type for task in config.tasks] == ["bce", "bce", "mse"]
    assert (config.bottom.type, config.gradient.type) == ("concat", "sum")


def test_the_dump_holds_every_default(raw):
    dumped = yaml.safe_load(dump(parse(raw)))
    assert dumped["train"] == TrainConfig().model_dump(mode="json")
    assert dumped["head"] == {"type": "shared_bottom", "shared": [256, 128], "tower": [64], "norm": "none"}
    loss = {"type": "mse", "standardize": True, "transform": "none", "clip": None, "minimum": None}
    assert dumped["tasks"][2]["loss"] == loss
    assert (dumped["tasks"][2]["gate"], dumped["tasks"][2]["order"]) == (None, None)
    assert list(dumped) == ["data", "features", "tasks", "bottom", "head", "gradient", "optim", "train", "run_dir"]


def test_a_config_cannot_be_changed(raw):
    config = parse(raw)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.train.epochs = 3
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.tasks[0].loss.type = "focal"
    assert hash(config) == hash(parse(raw))
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_config_class_with_a_mutable_field_is_refused():
    with pytest.raises(
        TypeError, match=r"Bad\.widths: configs are frozen all the way down; found list\[int\]; use a tuple"
    ):

        class Bad(Config):
            widths: list[int] = []  # noqa: RUF012


def test_errors_speak_the_same_words_in_python():
    with pytest.raises(pydantic.ValidationError, match=r"unknown key\. Did you mean 'epochs'\?"):
        TrainConfig(epochz=1)


# Names that YAML, read carelessly, takes for something else.
TRICKY = [
    "no",
    "on",
    "null",
    "~",
    "1e3",
    "1e-3",
    "007",
    "2024-01-01",
    "12:30",
    "0x1f",
    "- a",
    "#a",
    "ü",
    "a: b",
    "'",
    '"',
]
words = st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
safe = words.map(lambda word: "".join(c for c in word if c not in "@/. ") or "x")
floats = st.floats(1e-9, 1e9)
sizes = st.integers(1, 10**10)
heads = st.fixed_dictionaries({"type": st.just("shared_bottom"), "tower": st.lists(sizes, max_size=3)}) | (
    st.fixed_dictionaries(
        {"type": st.sampled_from(["htlnet", "torchrec_mtl.heads.htlnet:HTLNet", "installed"])},
        optional={
            "tower": st.lists(sizes, min_size=1, max_size=3),
            "temperature": st.fixed_dictionaries({"start": floats}),
            "leu": st.booleans(),
        },
    )
)


@st.composite
def configs(draw):
    names = draw(st.lists(safe, min_size=5, max_size=5, unique=True))
    table = f"{names[0]}_table"
    loss = {"type": "focal", "gamma": draw(floats)} if draw(st.booleans()) else "bce"
    return {
        "data": {
            "train": draw(words | st.lists(words, min_size=1, max_size=2)),
            "batch_size": 8 * draw(st.integers(1, 99)),
            "keys": draw(st.lists(words, max_size=2)),
            "group": draw(st.none() | words),
        },
        "features": {
            "tables": [{"name": table, "rows": draw(sizes), "dim": 4 * draw(st.integers(1, 9))}],
            "sparse": [{"name": names[1], "table": table, "max_length": draw(st.none() | sizes)}],
            "dense": [names[2]] if draw(st.booleans()) else [{"name": names[2], "transform": "log1p"}],
        },
        "tasks": [
            {"name": names[3], "kind": "binary", "label": f"label of {names[3]}", "loss": loss, "weight": draw(floats)},
            {"name": names[4], "kind": "regression", "label": f"label of {names[4]}", "space": draw(st.none() | words)},
        ],
        "head": draw(heads),
        "gradient": {"type": "htlnet", "core": names[4], "alpha": draw(st.floats(0, 1))},
        "optim": {"dense": {"lr": draw(floats)}, "schedule": {"type": "cosine", "warmup": draw(st.floats(0, 1))}},
        "train": {"seed": draw(st.integers(0, 2**63)), "device": "cpu"},
        "run_dir": draw(words),
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw=configs())
def test_a_dump_is_read_back_as_it_was(raw):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_installed", lambda group: {"installed": "torchrec_mtl.heads.htlnet:HTLNet"})
        config = parse(raw)
        text = dump(config)
        again = parse(read_yaml(text)[0])
        assert again == config
        assert type(again.head) is type(config.head)
        assert dump(again) == text
        assert parse(yaml.safe_load(text)) == config  # other readers of YAML 1.1 agree


def test_a_config_is_found_at_fault_without_importing_torch():
    code = (
        "import sys, torchrec_mtl.config.load, torchrec_mtl.registry as r\n"
        "for kind in r.BUILT_IN: r.listing(kind)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", sorted(registry.BUILT_IN))
def test_every_built_in_plugin_is_listed_with_a_line_and_resolves(kind):
    lines = registry.listing(kind)
    assert [name for name, _ in lines] == list(registry.BUILT_IN[kind])
    for name, line in lines:
        assert line.endswith((".", "`", "``."))
        assert (registry.resolve(kind, name).__doc__ or "").startswith(line)


def test_an_installed_plugin_is_listed_by_its_path_and_shadows_no_built_in(monkeypatch):
    found = {"mine": "mine.heads:Mine", "htlnet": "mine.heads:Other"}
    monkeypatch.setattr(registry, "_installed", lambda group: found)
    assert registry.listing("head")[-1] == ("mine", "mine.heads:Mine")
    assert registry.names("head")["htlnet"] == "torchrec_mtl.heads.htlnet:HTLNet"


def test_sequence_tables_hold_their_sparse_features_too():
    features = FeaturesConfig.model_validate(
        {
            "sparse": [{"name": "user", "table": "user"}, {"name": "item", "table": "item"}],
            "sequences": [{"name": "seen", "table": "item", "max_length": 5}],
        }
    )
    assert [f.name for f in features.pooled] == ["user"]
    assert [f.name for f in features.unpooled] == ["item", "seen"]
