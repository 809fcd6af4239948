"""DTRN's benchmark: differences paired by seed, what can be asked of the suite, and LightGBM beaten or not."""

import json
import math
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from benchmarks import dtrn
from benchmarks.dtrn import (
    MEAN,
    QUESTIONS,
    TUNED,
    UNTUNED,
    Measured,
    answers,
    best_model,
    claim,
    lightgbm_table,
    main,
    make_report,
    questions,
    questions_table,
    read_lightgbm,
    unpaired_difference,
)
from torchrec_mtl.bench.suite import load_suite

ROOT = Path(__file__).parents[3]
TASKS = ("click", "like")


def model(*shifts, score=0.8, seeds=(0, 1, 2)):
    """A model whose AUC is 0.7 plus a shift a task, and a little more with each seed."""
    return Measured(score, {t: {s: 0.7 + d + 0.01 * s for s in seeds} for t, d in zip(TASKS, shifts, strict=True)})


@pytest.fixture
def found():
    uneven = {"click": {0: 0.71, 1: 0.73, 2: 0.74}, "like": {0: 0.6, 1: 0.61, 2: 0.62}}
    return {"mmoe, pooled histories": model(0, 0, score=0.7), "mmoe, DTRN": Measured(0.75, uneven)}


@pytest.fixture(scope="module")
def suite():
    return load_suite(ROOT / "benchmarks" / "dtrn.yaml")


def test_differences_are_paired_by_seed(found):
    [answer] = answers(found)
    assert (answer.head, answer.first, answer.second) == ("mmoe", "DTRN", "pooled histories")
    click, like = answer.differences["click"], answer.differences["like"]
    assert click.mean == pytest.approx((0.01 + 0.02 + 0.02) / 3)
    assert click.half == pytest.approx(4.302653 * (1e-4 / 9) ** 0.5, rel=1e-5)  # t(2) s / sqrt(3)
    assert like.mean == pytest.approx(-0.1)
    assert answer.differences[MEAN].mean == pytest.approx((click.mean + like.mean) / 2)


def test_only_seeds_that_both_have_are_compared():
    found = {"ple, pooled histories": model(0, 0, seeds=(0, 1)), "ple, DTRN": model(0.02, 0.01, seeds=(1, 2))}
    [answer] = answers(found)
    assert answer.differences["click"].count == 1
    assert answer.differences["click"].mean == pytest.approx(0.02)
    assert math.isnan(answer.differences["click"].half)
    found["ple, DTRN"] = model(0.02, 0.01, seeds=())
    assert answers(found) == []


def test_every_question_can_be_asked_of_a_suite_and_every_model_is_asked_about():
    askable = set()
    for name in ("dtrn", "dtrn_movielens"):
        names = [m.name for m in load_suite(ROOT / "benchmarks" / f"{name}.yaml").models]
        asked = questions(names)
        askable |= {(first, second) for _, first, second in asked}
        assert {f"{head}, {bottom}" for head, *both in asked for bottom in both} == set(names)
        heads = {name.partition(", ")[0] for name in names}
        assert {head for head, *both in asked if both == ["DTRN", "pooled histories"]} == heads
    assert askable == set(QUESTIONS)


def test_models_of_one_head_differ_in_nothing_but_the_bottom(suite):
    heads = {}
    for m in suite.models:
        [word] = [word for word in m.set if word.startswith("head=")]
        heads.setdefault(m.name.partition(", ")[0], set()).add((word, m.unsearched, m.search))
    assert {name: len(kinds) for name, kinds in heads.items()} == dict.fromkeys(heads, 1)


def test_marks_follow_the_corrected_p():
    values = {"click": {0: 0.7, 1: 0.71, 2: 0.72, 3: 0.71}, "like": {0: 0.6, 1: 0.6, 2: 0.6, 3: 0.61}}
    found = {
        "mmoe, pooled histories": Measured(0.7, values),
        "mmoe, DTRN": Measured(
            0.7,
            {
                "click": {s: v + 0.05 + 0.001 * (s % 2) for s, v in values["click"].items()},
                "like": {s: v - 0.01 * (-1) ** s for s, v in values["like"].items()},
            },
        ),
    }
    [row] = questions_table(answers(found)).rows
    _, _, click, like, mean, seeds = row
    assert click.mark == "better"
    assert click.text.startswith("+0.0505 ± ")
    assert click.small == "p < 0.001"
    assert (like.mark, like.small) == ("", "p 1.000")
    assert mean.mark == "better"
    assert seeds.text == "4"


def test_the_claim_is_counted(found):
    found |= {"ple, pooled histories": model(0, 0), "ple, DTRN": model(0.01, -0.01)}
    assert claim(answers(found)) == (
        "DTRN against pooled histories, all heads and tasks: 4 cells; mean above 0 in 2; "
        "the 95 % interval lies above 0 in 2, below 0 in 2."
    )


def test_the_best_model_is_the_one_of_the_validation_rows(found):
    assert best_model(found) == "mmoe, DTRN"  # 0.75, though its likes are far worse on the test rows
    found["mmoe, DIN"] = Measured(0.9, {"click": {}, "like": {}})  # tuned, and not trained yet
    assert best_model(found) == "mmoe, DTRN"
    assert best_model({}) is None


def test_unpaired_differences_are_welchs():
    ours, theirs = [0.71, 0.72, 0.75, 0.73], [0.70, 0.71, 0.70]
    expected = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    found = unpaired_difference(ours, theirs)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    alone = unpaired_difference(ours, [0.7])
    assert alone.low == pytest.approx(0.7275 - 0.7 - 3.182446 * (0.000875 / 3 / 4) ** 0.5, rel=1e-4)
    assert math.isnan(unpaired_difference([0.7], [0.6]).half)


@pytest.mark.parametrize(
    ("theirs", "beaten", "above"),
    [([0.60, 0.61], "yes", "2 of 2"), ([0.80, 0.81], "no", "0 of 2"), ([0.70, 0.73], "cannot be told", "1 of 2")],
)
def test_whether_lightgbm_is_beaten_is_computed(theirs, beaten, above):
    found = {"mmoe, pooled histories": model(0, 0), "mmoe, DTRN": model(0.01, 0.01, score=0.9)}
    table = lightgbm_table(found, {TUNED: {"click": theirs}})
    [row] = table.rows
    assert table.columns[2] == "mmoe, DTRN"
    assert [cell.text for cell in row[:2] + row[-2:]] == [TUNED, "click", beaten, above]


def test_the_mean_of_tasks_is_compared_where_lightgbm_has_all_of_them():
    found = {"mmoe, DTRN": model(0.01, 0.03, score=0.9)}  # 0.72 and 0.74 over the seeds
    table = lightgbm_table(found, {TUNED: {"click": [0.71, 0.73], "like": [0.69, 0.71]}, UNTUNED: {"like": [0.7]}})
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [
        [TUNED, "click"],
        [TUNED, "like"],
        [TUNED, MEAN],
        [UNTUNED, "like"],
    ]
    _, _, ours, theirs, difference, *_ = table.rows[2]
    assert [c.text.split()[0] for c in (ours, theirs, difference)] == ["0.7300", "0.7100", "+0.0200"]
    assert table.rows[3][3].text == "0.7000"  # one model has no spread


def test_lightgbms_figures_are_read_as_its_script_writes_them(tmp_path):
    path = tmp_path / "lightgbm.json"
    assert read_lightgbm(path) == {}
    figures = {"metric": "auc", "validation": [0.8], "test": [0.7, 0.71]}
    path.write_text(json.dumps({"click": figures, "play_seconds": {**figures, "metric": "gini"}}))
    assert read_lightgbm(path) == {TUNED: {"click": [0.7, 0.71]}}
    path.write_text(json.dumps({"click": figures | {"untuned": [0.6]}}))
    assert read_lightgbm(path)[UNTUNED] == {"click": [0.6]}


def test_the_report_says_what_is_missing(found):
    report = make_report("dtrn", found, {TUNED: {"click": [0.6, 0.61], "like": [0.7, 0.71]}})
    assert "| DTRN against pooled histories | mmoe | " in report
    assert "### Against LightGBM" in report
    assert "LightGBM is left out" in make_report("dtrn", found, {})
    assert "No two models" in make_report("dtrn", {}, {})


def test_costs_are_measured_elsewhere_and_quality_is_the_default(monkeypatch, tmp_path, capsys):
    called = []
    monkeypatch.setattr(dtrn, "quality", lambda arguments: called.append(list(arguments)) or 0)
    monkeypatch.setattr("benchmarks.dtrn_cost.main", lambda arguments: called.append(["cost", *arguments]))
    assert [main(words) for words in ([], ["--report-only"], ["quality", "--out", "x"], ["cost", "--batch", "8"])] == [
        0
    ] * 4
    assert called == [[], ["--report-only"], ["--out", "x"], ["cost", "--batch", "8"]]
    assert main(["--help"]) == 0
    assert "python benchmarks/dtrn.py cost" in capsys.readouterr().out


def test_a_suite_that_cannot_be_read_is_said(tmp_path, capsys):
    assert main(["--suite", str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 1
    assert "none.yaml" in capsys.readouterr().err
