import pytest
import yaml

from tests.unit.bench.suites import SUITE
from torchrec_mtl.bench.suite import Dimension, load_suite
from torchrec_mtl.config.base import Config
from torchrec_mtl.config.load import ConfigError


def problems(tmp_path, change):
    raw = yaml.safe_load(SUITE)
    change(raw)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_suite(tmp_path / "suite.yaml")
    return caught.value.problems


def test_a_suite_is_read_with_names_from_its_keys(folder):
    suite = load_suite(folder / "suite.yaml")
    assert isinstance(suite, Config)
    assert [m.name for m in suite.models] == ["single_task", "shared_bottom", "htlnet"]
    assert suite.models[0].set == ('head={"type": "single_task", "tower": [8]}',)
    assert suite.data[0].set == ("train.log_every=5",)
    assert (suite.search[0].name, suite.search[0].low) == ("optim.dense.lr", 0.001)


def test_all_typos_are_found_at_once_and_called_by_their_names(tmp_path):
    def change(raw):
        raw["trails"] = 3
        raw["models"]["htlnet"]["rolle"] = "system"
        raw["models"]["shared_bottom"]["role"] = "baselin"
        raw["search"]["optim.dense.lr"]["hi"] = 1.0
        raw["seeds"] = [0, "one"]

    found = "\n".join(problems(tmp_path, change))
    for line in (
        "trails: unknown key. Did you mean 'trials'?",
        "models.htlnet.rolle: unknown key. Did you mean 'role'?",
        "models.shared_bottom.role: expected baseline or system, found 'baselin'. Did you mean 'baseline'?",
        "search.optim.dense.lr.hi: unknown key.",
        "seeds.1: expected a whole number (found 'one')",
    ):
        assert line in found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda r: r["models"]["htlnet"].update(only=["plantd"]), "no data set is called 'plantd'. Did you mean"),
        (lambda r: r["models"]["htlnet"].update({"except": ["planted"]}), "leave it no data set"),
        (
            lambda r: r["models"]["htlnet"].update({"exceptt": ["planted"]}),
            "Did you mean 'except'?",
        ),
        (
            lambda r: r["models"]["htlnet"].update(unsearched=["optim.dens.lr"]),
            "models.htlnet.unsearched: 'optim.dens.lr' is not in search. Did you mean 'optim.dense.lr'?",
        ),
        (lambda r: r.update(tuning_seed=1), "tuning_seed: 1 is one of seeds"),
        (lambda r: r.update(seeds=[3, 3]), "seeds: 3 is given twice"),
        (lambda r: r.update(models=["htlnet"]), "models: expected a mapping of names"),
        (lambda r: r["models"].update(htlnet=3), "htlnet: expected a mapping"),
        (lambda r: r["models"]["htlnet"].update(set=["a=1"]), "models.htlnet.set: expected settings of the run"),
        (lambda r: r["search"].update(x={"low": 2, "high": 1}), "search.x: low must be below high"),
        (
            lambda r: r["search"].update(x={"low": 0, "high": 1, "log": True}),
            "search.x: log wants low and high above 0",
        ),
        (lambda r: r["search"].update(x={"low": 1}), "search.x: give either low and high, or choices"),
        (lambda r: r["search"].update(x={"low": 1, "high": 2, "choices": [1]}), "give either low and high, or choices"),
        (lambda r: r.pop("data"), "data: missing"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, change, line):
    assert any(line in problem for problem in problems(tmp_path, change))


def test_a_file_that_is_no_suite_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_suite(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="expected a mapping with name, data, and models"):
        load_suite(tmp_path / "list.yaml")


def test_a_model_s_search_wins_over_the_suite_s(folder):
    suite = load_suite(folder / "suite.yaml")
    own = Dimension(name="optim.dense.lr", choices=(0.1, 0.2))
    model = suite.models[0].model_copy(update={"search": (own,)})
    assert suite.search_of(model) == (own,)


def test_whole_numbers_are_told_from_others():
    assert Dimension(name="x", low=1, high=4).is_whole
    assert not Dimension(name="x", low=1, high=4.5).is_whole


def test_a_model_may_have_less_to_search(tmp_path):
    raw = yaml.safe_load(SUITE)
    raw["models"]["htlnet"]["unsearched"] = ["optim.dense.lr"]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    suite = load_suite(tmp_path / "suite.yaml")
    searched = {model.name: [d.name for d in suite.search_of(model)] for model in suite.models}
    assert "optim.dense.lr" not in searched["htlnet"]
    assert "optim.dense.lr" in searched["single_task"]
