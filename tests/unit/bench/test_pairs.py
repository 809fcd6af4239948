import re
from pathlib import Path

import pytest

from tests.unit.bench.suites import open_suite, write_suite
from torchrec_mtl.bench.identity import section
from torchrec_mtl.bench.pairs import check_pairs, require, selected
from torchrec_mtl.bench.suite import load_suite
from torchrec_mtl.config.load import ConfigError

ROOT = Path(__file__).parents[3]


def problems(folder, wanted=None):
    suite = load_suite(folder / "suite.yaml")
    checked = check_pairs(suite, None, prepare=False)
    names = wanted or selected(suite, (), (), "suite.yaml")
    with pytest.raises(ConfigError) as caught:
        require(checked, names, "suite.yaml")
    return caught.value.problems


def models(**changed):
    return {"good": {}, **changed}


def test_the_problems_of_all_models_are_found_at_once(folder):
    write_suite(
        folder,
        models=models(
            a={"set": {"head.towr": [4]}},
            b={"set": {"head": "shared_botom"}},
            c={"set": {"gradient": {"type": "htlnet", "core": "click"}, "head": "single_task"}},
        ),
    )
    found = problems(folder)
    assert any(line.startswith("a on planted: head.towr: unknown key. Did you mean 'tower'?") for line in found)
    assert any(line.startswith("b on planted: head") and "shared_bottom" in line for line in found)
    assert any(
        line.startswith("c on planted: gradient: 'htlnet' cannot act under head 'single_task'") for line in found
    )


def test_both_ends_of_every_searched_setting_are_checked(folder):
    write_suite(
        folder,
        models=models(a={"search": {"head.norm": {"choices": ["none", "bach"]}}}),
        search={"optim.dense.l": {"low": 1, "high": 2}},
    )
    found = problems(folder)
    assert any(line.startswith("every model on planted: search.optim.dense.l, 1:") for line in found)
    assert any(line.startswith("a on planted: search.head.norm, bach: head.norm") for line in found)


@pytest.mark.parametrize("key", ["run_dir", "train.seed", "data.test", "train.references"])
def test_what_the_bench_sets_itself_is_refused(folder, key):
    value = {"run_dir": "x", "train.seed": 3, "data.test": "x.parquet", "train.references": True}[key]
    write_suite(folder, models=models(a={"set": {key: value}}))
    assert f"a on planted: {key}: the bench sets this itself; remove it" in problems(folder)


def test_validation_and_test_rows_are_needed(folder):
    write_suite(folder, models=models(a={"set": {"data.eval": None}}))
    assert "a on planted: data.eval: missing; tuning is scored on its rows" in problems(folder)


def test_a_score_that_a_data_set_lacks_is_refused(folder):
    write_suite(folder, score="clck/auc")
    assert problems(folder) == ["every model on planted: score: no task is called 'clck'. Did you mean 'click'?"]


def test_columns_are_checked_before_anything_runs(folder):
    write_suite(folder, models=models(a={"set": {"tasks.click.label": "clicked"}}))
    assert any("clicked" in line for line in problems(folder))


def test_a_missing_yaml_is_said_once(folder):
    write_suite(folder, data={"planted": {"config": "nowhere.yaml"}})
    [line] = problems(folder)
    assert line.startswith("every model on planted: nowhere.yaml: no such file.")


def test_what_was_not_asked_for_may_be_wrong(folder):
    write_suite(folder, models=models(a={"set": {"head.towr": [4]}}))
    suite = load_suite(folder / "suite.yaml")
    checked = check_pairs(suite, None, prepare=False)
    require(checked, {("planted", "good")}, "suite.yaml")
    assert [pair.model.name for pair in checked.pairs] == ["good"]


def test_unknown_names_of_options_are_refused(folder):
    suite = load_suite(folder / "suite.yaml")
    with pytest.raises(ConfigError, match=r"--models htlnt: not in the suite. Did you mean 'htlnet'\?"):
        selected(suite, (), ("htlnt",), "suite.yaml")
    assert selected(suite, ("planted",), ("htlnet",), "suite.yaml") == {("planted", "htlnet")}


def test_fingerprints_tell_settings_and_data_apart_but_not_seeds(folder):
    _, pairs = open_suite(folder)
    plain, other = pairs["shared_bottom"], pairs["htlnet"]
    mark = plain.fingerprint(plain.run)
    assert mark == plain.fingerprint(plain.configure(["train.seed=5", "run_dir=elsewhere"]))
    assert mark == plain.fingerprint(plain.configure(["train.save=wait"]))
    assert mark == plain.fingerprint(plain.configure(["train.sinks=[tests.sinks:Keeping]"]))
    changed_runs = [plain.configure([word]) for word in ("train.epochs=3", "train.precision=bf16", "train.comms=fp16")]
    assert len({mark, other.fingerprint(other.run), *map(plain.fingerprint, changed_runs)}) == 5
    (folder / "test.parquet").write_bytes((folder / "validation.parquet").read_bytes())
    changed = open_suite(folder)[1]["shared_bottom"]
    assert changed.fingerprint(changed.run) != mark


def test_the_example_suite_is_fine(monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = load_suite("benchmarks/mini.yaml")
    checked = check_pairs(suite, None, prepare=False)
    assert not checked.problems
    assert [pair.model.name for pair in checked.pairs] == ["single_task", "shared_bottom"]


def test_the_suite_in_the_docs_is_fine(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    [text] = re.findall(r"```yaml\n(.*?)```", Path("docs/bench.md").read_text(), re.DOTALL)
    (tmp_path / "suite.yaml").write_text(text)
    assert not check_pairs(load_suite(tmp_path / "suite.yaml"), None, prepare=False).problems


def test_sections_of_a_config_by_path(folder):
    run = open_suite(folder)[1]["shared_bottom"].run
    assert section(run, "head.shared") == [8]
    assert section(run, "tasks.click.weight") == section(run, "tasks.0.weight") == 1.0
    assert section(run, "head.nothing") is None
    assert section(run, "tasks.9.weight") is None
