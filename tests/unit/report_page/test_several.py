"""The page of several runs: what is put together, what is marked, what differs."""

import json
import math
import re

import pytest
import yaml

from tests.pages import well_formed
from tests.report_runs import make_run, write_lines
from torchrec_mtl.report_page.differences import difference_table
from torchrec_mtl.report_page.groups import group_runs
from torchrec_mtl.report_page.overlay import losses_of
from torchrec_mtl.report_page.page import write_page
from torchrec_mtl.report_page.read import read_run
from torchrec_mtl.report_page.scoreboard import how_to_read, metrics_tables, transfer_table
from torchrec_mtl.report_page.several import comparing_page


def metrics(auc, gini):
    return {"<b>": {"count": 9000.0, "auc": auc, "calibration": auc}, "watch": {"gini": gini, "nrmse": 1 - gini}}


@pytest.fixture
def runs(tmp_path):
    """Two configs with three seeds, and one with a single one."""
    made = [
        make_run(
            tmp_path / f"mmoe-seed{s}", seed=s, head={"type": "mmoe", "experts": 4}, metrics=metrics(0.7 + s / 100, 0.5)
        )
        for s in range(3)
    ]
    made += [
        make_run(tmp_path / f"alone-{s}", seed=s, head="single_task", metrics=metrics(0.65 + s / 100, 0.6 + s / 1000))
        for s in range(3)
    ]
    return [*made, make_run(tmp_path / "other", head="htlnet", metrics=metrics(0.9, 0.4))]


def groups_of(runs):
    return group_runs([read_run(run) for run in runs])


def row(table, name):
    (found,) = (cells for cells in table.rows if cells[0].text == name)
    return dict(zip(table.columns, found, strict=True))


def test_seeds_of_one_config_are_one(runs):
    groups = groups_of(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [("mmoe", 3), ("alone", 3), ("other", 1)]
    assert len({group.colour for group in groups}) == len({group.dash for group in groups}) == 3


def test_the_same_seed_twice_is_no_second_seed(tmp_path):
    made = [make_run(tmp_path / name / "run") for name in ("a", "b")]
    groups = groups_of(made)
    assert [len(group.runs) for group in groups] == [1, 1]
    assert [group.name for group in groups] == [f"run ({path})" for path in made]


def test_a_run_given_twice_is_refused(runs):
    with pytest.raises(ValueError, match="are the same run; name each once"):
        groups_of([runs[0], runs[0].parent / "." / runs[0].name])


def test_a_mean_has_its_interval_and_the_best_is_marked(runs):
    table = next(t for t in metrics_tables(groups_of(runs)) if t.title.startswith("<b>"))
    assert row(table, "mmoe")["auc"].text == "0.7100 ± 0.025"  # 4.303 x 0.01 / sqrt(3)
    assert {name: row(table, name)["auc"].mark for name in ("mmoe", "alone", "other")} == {
        "mmoe": "",
        "alone": "",
        "other": "better",
    }
    assert row(table, "other")["calibration"].mark == "better"  # 0.9 is nearest to 1
    assert all(row(table, name)["count"].mark == "" for name in ("mmoe", "alone", "other"))
    assert row(table, "mmoe")["count"].text == "9,000"


def test_the_smaller_error_is_the_better_one(runs):
    table = next(t for t in metrics_tables(groups_of(runs)) if t.title.startswith("watch"))
    assert row(table, "alone")["nrmse"].mark == "better"
    assert row(table, "other")["nrmse"].mark == ""


def test_transfer_is_paired_by_seed_and_marked_beyond_chance(runs):
    table = transfer_table(groups_of(runs))
    assert table is not None
    mmoe = row(table, "mmoe")
    assert mmoe["<b> auc"].text == "+0.0500 ± 0.0000"
    assert mmoe["<b> auc"].mark == "better"
    assert mmoe["watch gini"].mark == "worse"
    assert mmoe["watch nrmse"].mark == "worse"  # larger, and lower is better
    other = row(table, "other")  # of a seed that the reference does not have
    assert other["<b> auc"].text == "+0.2400"
    assert other["<b> auc"].mark == ""
    assert "alone" not in [cells[0].text for cells in table.rows]


def test_a_run_of_one_task_is_a_reference_for_that_task(tmp_path):
    both, one = (make_run(tmp_path / n, metrics=metrics(a, 0.5)) for n, a in (("both", 0.7), ("one", 0.8)))
    config = yaml.safe_load((one / "config.yaml").read_text())
    config["tasks"] = config["tasks"][:1]
    (one / "config.yaml").write_text(yaml.safe_dump(config))
    table = transfer_table(groups_of([both, one]))
    assert table is not None
    assert table.columns == ("run", "<b> auc")
    assert row(table, "both")["<b> auc"].text == "-0.1000"


def test_without_a_reference_there_is_no_table(runs):
    assert transfer_table(groups_of(runs[:3] + runs[6:])) is None


def test_only_keys_that_differ_are_shown(runs):
    table = difference_table(groups_of(runs))
    found = {cells[0].text: [cell.text for cell in cells[1:]] for cells in table.rows}
    assert found == {"head.type": ["mmoe", "single_task", "htlnet"], "head.experts": ["4", "-", "-"]}


def test_items_of_lists_are_compared_by_name(tmp_path):
    one, other = (make_run(tmp_path / name) for name in "ab")
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["tasks"] = [{**config["tasks"][1], "label": "seconds"}, config["tasks"][0]]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    table = difference_table(groups_of([one, other]))
    assert [[cell.text for cell in cells] for cells in table.rows] == [["tasks.watch.label", "play & time", "seconds"]]


def test_other_data_and_missing_evaluations_are_said(runs):
    config = yaml.safe_load((runs[6] / "config.yaml").read_text())
    config["data"]["eval"] = ["c.parquet"]
    (runs[6] / "config.yaml").write_text(yaml.safe_dump(config))
    (runs[1] / "metrics.json").unlink()
    said = " ".join(how_to_read(groups_of(runs)))
    assert "Not evaluated on the same files" in said
    assert "other: eval data c.parquet" in said
    assert "No final evaluation yet: mmoe-seed1." in said


def test_the_page_is_well_formed_and_escapes_what_users_wrote(runs, tmp_path):
    evil = make_run(tmp_path / "<script>alert(1)<script>", head="</style><script>", metrics=metrics(0.5, 0.5))
    text = comparing_page([read_run(run) for run in [*runs, evil]])
    page = well_formed(text)
    assert "<script" not in text
    assert "Comparison of 8 runs of 4 configs" in page.texts
    assert {"mmoe", "alone", "other", "3 seeds", "Tasks together against each alone"} <= set(page.texts)


def test_curves_of_several_seeds_are_a_mean_with_an_interval(runs):
    for run, factor in zip(runs[:3], (1.0, 2.0, 3.0), strict=True):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [{k: v * factor if k == "eval/loss" else v for k, v in line.items()} for line in lines]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = comparing_page([read_run(run) for run in runs[:3] + runs[6:]])
    start = text.index("all tasks, evaluation")
    chart = text[start : text.index("</figure>", start)]
    assert "mmoe, step 50.00: 2.000" in chart  # the mean
    assert len(re.findall(r"<line [^>]*opacity=\"0.55\"", chart)) == 2  # an interval at each of two evaluations
    assert chart.count("<polyline") == 2


def test_runs_without_anything_but_a_config_make_a_page(tmp_path):
    made = [make_run(tmp_path / name, head=name) for name in "ab"]
    for run in made:
        for file in run.iterdir():
            if file.name != "config.yaml":
                file.unlink()
    page = well_formed(comparing_page([read_run(run) for run in made]))
    assert "No run has a final evaluation." in page.texts


def test_several_runs_need_a_name_for_their_page(runs, tmp_path):
    with pytest.raises(ValueError, match=r"such as --out page\.html"):
        write_page(runs)
    assert write_page(runs, tmp_path / "page.html").is_file()
    assert not (runs[0] / "report.html").exists()


def test_seeds_that_a_mean_does_not_have_are_told(runs):
    (runs[1] / "metrics.json").unlink()
    table = next(t for t in metrics_tables(groups_of(runs)) if t.title.startswith("<b>"))
    assert row(table, "mmoe")["auc"].small == "2 of 3 seeds"
    assert row(table, "alone")["auc"].small == ""


def test_a_metric_that_the_reference_lacks_has_no_difference(tmp_path):
    both = make_run(tmp_path / "both", metrics=metrics(0.7, 0.5))
    alone = make_run(tmp_path / "alone", head="single_task", metrics=metrics(None, 0.5))
    table = transfer_table(groups_of([both, alone]))
    assert table is not None
    assert (row(table, "both")["<b> auc"].text, row(table, "both")["<b> auc"].small) == ("-", "")


def test_differences_between_evaluations_on_other_files_are_said(runs):
    table = transfer_table(groups_of(runs))
    assert table is not None
    assert "same files" not in " ".join(table.notes)
    config = yaml.safe_load((runs[6] / "config.yaml").read_text())
    config["data"]["eval"] = ["c.parquet"]
    (runs[6] / "config.yaml").write_text(yaml.safe_dump(config))
    table = transfer_table(groups_of(runs))
    assert table is not None
    assert "Not evaluated on the same files" in table.notes[-1]
    assert table.notes[-1].endswith(": other against alone.")


def test_long_values_that_differ_late_are_shown_where_they_differ(tmp_path):
    first = make_run(tmp_path / "a", head={"type": "mmoe", "layers": "x" * 500 + "one"})
    other = make_run(tmp_path / "b", head={"type": "mmoe", "layers": "x" * 500 + "two" + "y" * 500})
    third = make_run(tmp_path / "c", head={"type": "mmoe", "layers": "x" * 500 + "one", "note": "z" * 500})
    table = difference_table(groups_of([first, other, third]))
    found = {cells[0].text: [cell.text for cell in cells[1:]] for cells in table.rows}
    assert found["head.layers"][0] == "..." + "x" * 40 + "one"
    assert found["head.layers"][1] == "..." + "x" * 40 + "two" + "y" * 157 + "..."
    assert found["head.note"] == ["-", "-", "z" * 200 + "..."]


def of_key(runs, key, values):
    """Write a log a run, with a line a value."""
    for run, mine in zip(runs, values, strict=True):
        write_lines(run / "metrics.jsonl", [{"step": s, key: v} for s, v in enumerate(mine, 1)])


def test_means_of_long_logs_go_to_the_last_step(runs):
    of_key(runs[:3], "eval/loss", [[*[0.5] * 4_999, seed / 10] for seed in (1, 2, 3)])
    assert "mmoe 0.2000" in well_formed(losses_of(groups_of(runs[:3]))).texts


def test_a_step_that_one_seed_lacks_is_a_gap(runs):
    of_key(runs[:3], "eval/loss", [[0.5] * 5, [0.5, 0.5, math.nan, 0.5, 0.5], [0.5] * 5])
    assert losses_of(groups_of(runs[:3])).count("<polyline") == 2


def test_losses_of_training_are_drawn_once(runs):
    titles = [
        t for t in well_formed(losses_of(groups_of(runs[:3]))).texts if t.endswith((", training", ", evaluation"))
    ]
    assert sorted(titles) == ["<b>, evaluation", "<b>, training", "all tasks, evaluation", "watch, training"]
