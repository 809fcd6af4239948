"""The benchmark on generated data: equal models, resumable results, honest verdicts."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from torchrec_mtl.registry import BUILT_IN

ROOT = Path(__file__).parents[3]


def load_script():
    spec = importlib.util.spec_from_file_location("oracle_benchmark", ROOT / "benchmarks" / "oracle.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load_script()


def result(click, buy):
    return {"auc": {"click": click, "buy": buy}, "seconds": 1.0}


class KnownOracle:
    folder = "nowhere"

    def __init__(self, click=0.8):
        self.auc = {relation: {"test": {"click": click, "buy": 0.8}} for relation in ("independent", "conflicting")}


def test_every_registered_head_takes_part():
    retrieval = {"dmmp"}  # its logits are towers' that read one side each
    assert {options.get("type", name) for name, options in script.MODELS.items()} == set(BUILT_IN["head"]) - retrieval


@pytest.mark.parametrize("model", script.MODELS)
def test_models_have_equal_parameters(model):
    above, _ = script.num_parameters(model)
    assert above == pytest.approx(5_700, rel=0.05)


def test_a_result_is_found_again_but_not_for_other_data_or_another_seed(tmp_path):
    job = script.Job("independent", "ple", 3)
    log = script.Log(tmp_path / "runs.jsonl", KnownOracle())
    assert log.find(job) is None
    log.path.write_text(json.dumps({**log.key(job), **result(0.7, 0.6)}) + "\n")
    again = script.Log(log.path, KnownOracle())
    assert again.find(job)["auc"] == {"click": 0.7, "buy": 0.6}
    assert again.complete([job], processes=1)[job]["seconds"] == 1.0
    assert again.find(script.Job("independent", "ple", 4)) is None
    assert script.Log(log.path, KnownOracle(click=0.81)).find(job) is None


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.01, 0.011, 0.012], "higher"),
        ([-0.01, -0.011, -0.012], "lower"),
        ([0.01, -0.01, 0.02], "no difference"),
        ([0.0, 0.0], "no difference"),
        ([0.01], "no difference"),
    ],
)
def test_a_difference_is_said_only_beyond_its_interval(differences, said):
    assert script.verdict(differences) == said


@pytest.mark.parametrize(
    ("mmoe", "ple", "said"),
    [
        ([0.01, 0.011], [0.02, 0.021], "holds"),
        ([0.01, 0.011], [0.02, -0.02], "holds; ple and mmoe differ by less than their interval"),
        ([0.01, 0.011], [-0.02, -0.021], "does NOT hold: mmoe against shared bottom: higher; ple against mmoe: lower"),
        ([0.01, -0.01], [0.02, 0.021], "does NOT hold: mmoe against shared bottom: no difference"),
    ],
)
def test_the_order_needs_gating_to_help_and_splitting_not_to_harm(mmoe, ple, said):
    assert script.order(mmoe, ple).startswith(said)


def test_interval_is_students():
    mean, half = script.interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 / 3**0.5))


def test_report_says_which_task_is_far_from_the_oracle_and_compares_by_seed():
    scored = {
        ("independent", "mmoe"): [result(0.795, 0.7), result(0.797, 0.71)],
        ("conflicting", "shared_bottom"): [result(0.70, 0.70), result(0.75, 0.75)],
        ("conflicting", "mmoe"): [result(0.71, 0.70), result(0.761, 0.749)],
    }
    report = "\n".join(script.lines(KnownOracle(), scored))
    row = next(line for line in report.splitlines() if line.startswith("| mmoe"))
    assert [cell.strip() for cell in row.split("|")][6:10:3] == ["yes", "NO"]
    assert "mmoe minus shared_bottom: click +0.0105 ± 0.0064 (higher), buy -0.0005 ± 0.0064 (no difference)" in report
    assert "ple minus mmoe" not in report
    assert "<=" not in report
    scored["conflicting", "ple"] = scored["conflicting", "mmoe"]
    assert list(script.lines(KnownOracle(), scored))[-1].startswith("shared bottom < mmoe <= ple: ")


def test_the_oracle_is_of_the_rows_in_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "TRAIN", {"funnel": 200})
    monkeypatch.setattr(script, "SCORED", {"test": 300})
    oracle = script.Oracle(str(tmp_path), ["funnel"])
    table = script.pq.read_table(tmp_path / "funnel-test.parquet")
    assert table.num_rows == 300
    assert oracle.auc["funnel"]["test"] == {task: script.oracle_auc(table, task) for task in ("click", "buy")}


def test_a_job_trains_and_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "TRAIN", {"independent": 4096})
    monkeypatch.setattr(script, "SCORED", {"validation": 512, "test": 2048})
    oracle = script.Oracle(str(tmp_path), ["independent"])
    job = script.Job("independent", "shared_bottom", 0)
    found = script.run_job(job, oracle.folder)["auc"]
    assert all(0.5 < found[task] < oracle.auc["independent"]["test"][task] for task in ("click", "buy"))
