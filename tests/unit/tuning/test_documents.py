"""What a study writes."""

import json
import re

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.pages import well_formed
from tests.unit.tuning.studies import a_point, drive, study_in, trade_off, write_space
from torchrec_mtl.bench.identity import canonical
from torchrec_mtl.bench.markdown import to_markdown
from torchrec_mtl.bench.page import to_html
from torchrec_mtl.config.load import load_config
from torchrec_mtl.tuning.choose import Choice
from torchrec_mtl.tuning.files import best_yaml, check_best, write
from torchrec_mtl.tuning.report import against_untuned, make_report
from torchrec_mtl.tuning.results import conclude


def a_result(study, *, seeds=2, choice=None):
    """Six trials, of which the second failed; three points, of which the last lacks a seed."""

    def measure(job):
        return "ValueError: <b>a | b</b>\nsecond line" if job.number == 2 else trade_off(job)

    course, _ = drive(study, 6, measure)
    points = [
        a_point(course.trials[0], *[(0.60 + s / 100, 1.0) for s in range(seeds)]),
        a_point(course.trials[2], *[(0.66 + s / 100, 0.9) for s in range(seeds)]),
        a_point(course.trials[4], *[(0.70, 1.4) if s == 0 else None for s in range(seeds)]),
    ]
    return conclude(study, course.trials, points, choice or Choice()), course


@pytest.fixture
def result(study):
    return a_result(study)[0]


def test_markdown_tables_have_as_many_cells_in_every_row(result):
    blocks = re.findall(r"(?:^\|.*\n)+", to_markdown(make_report(result)), re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_page_is_well_formed_and_needs_nothing_else(result):
    page = well_formed(to_html(make_report(result)))
    assert page.tags.count("svg") == 2  # click against watch_time, and the hypervolume
    assert "chosen" in page.texts


def test_what_users_wrote_cannot_break_the_documents(result):
    report = make_report(result)
    assert "<b>" not in to_markdown(report)
    assert "<b>" not in to_html(report)
    assert "&lt;b&gt;a | b&lt;/b&gt;" in to_html(report)


def test_three_objectives_make_three_plots_of_pairs(folder):
    write_space(folder, objectives=None)
    result, _ = a_result(study_in(folder))
    assert [plot.name for plot in make_report(result).sections[0].plots] == [
        "front-click_auc-long_view_auc.svg",
        "front-click_auc-watch_time_nrmse.svg",
        "front-long_view_auc-watch_time_nrmse.svg",
        "front-hypervolume.svg",
    ]


def test_the_same_result_is_written_as_the_same_files(study, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        result, course = a_result(study)
        write(result, make_report(result), course.optuna, tmp_path / name)
    names = {path.name for path in (tmp_path / "one").iterdir()} - {"study.journal", "best.yaml"}
    assert names == {
        *("front.json", "front.md", "front.html", "front-click_auc-watch_time_nrmse.svg", "front-hypervolume.svg")
    }
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_json_has_means_intervals_and_values_by_seed(study, tmp_path):
    result, course = a_result(study)
    found = json.loads(write(result, make_report(result), course.optuna, tmp_path))
    assert found == json.loads((tmp_path / "front.json").read_text())
    assert found["chosen"] == 3
    untuned, tuned, lacking = found["points"]
    assert (untuned["untuned"], tuned["untuned"], lacking["complete"]) == (True, False, False)
    auc = tuned["validation"]["click/auc"]
    assert auc["by_seed"] == {"0": 0.66, "1": 0.67}
    assert auc["mean"] == pytest.approx(0.665)
    assert auc["low"] < auc["mean"] < auc["high"]
    assert lacking["validation"]["click/auc"]["low"] is None  # one seed has no interval
    assert [t["status"] for t in found["trials"]] == ["ok", "failed", "ok", "ok", "ok", "ok"]
    assert len(found["hypervolume"]) == 6


def test_the_chosen_point_is_a_config_that_loads_as_what_was_trained(study, tmp_path):
    result, _ = a_result(study)
    (tmp_path / "best.yaml").write_text(best_yaml(result, result.chosen, tmp_path))
    written = load_config(tmp_path / "best.yaml")
    assert canonical(written) == canonical(study.configure(result.chosen.trial.words))
    assert written.optim.dense.lr != study.run.optim.dense.lr
    assert (written.run_dir, written.train.seed) == (str(tmp_path / "best"), study.run.train.seed)


def test_a_relative_preparation_is_still_found_from_the_new_file(folder, tmp_path):
    script = folder / "make.py"
    script.write_text("")
    text = (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(text.replace("data:", "data:\n  prepare: make.py", 1))
    result, _ = a_result(study_in(folder))
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (out / "best.yaml").write_text(best_yaml(result, result.chosen, out))
    assert load_config(out / "best.yaml").data.prepare == str(script.resolve())


def test_a_preparation_is_found_where_the_folder_lies_behind_a_link(folder, tmp_path):
    (folder / "make.py").write_text("")
    text = (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(text.replace("data:", "data:\n  prepare: make.py", 1))
    result, course = a_result(study_in(folder))
    (tmp_path / "far" / "away" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    out = tmp_path / "link" / "out"
    write(result, make_report(result), course.optuna, out)
    check_best(result, out)
    assert load_config(out / "best.yaml").data.prepare == str((folder / "make.py").resolve())
    (out / "best.yaml").write_text((out / "best.yaml").read_text().replace("make.py", "other.py"))
    with pytest.raises(ValueError, match=r"best\.yaml would not be the config that was trained .* is not written"):
        check_best(result, out)
    assert not (out / "best.yaml").exists()


def test_a_config_that_became_another_is_not_written_over_with_settings_of_before(study, tmp_path):
    result, course = a_result(study)
    study.config.write_text("optim: 7\n")
    with pytest.raises(ValueError, match="the chosen settings cannot be written into it"):
        write(result, make_report(result), course.optuna, tmp_path)


def test_without_a_choice_no_config_is_written_and_an_old_one_goes(study, tmp_path):
    course, _ = drive(study, 3)
    (tmp_path / "best.yaml").write_text("old")
    result = conclude(study, course.trials, [a_point(course.trials[0], (0.6, 1.0), None)], Choice())
    write(result, make_report(result), course.optuna, tmp_path)
    assert not (tmp_path / "best.yaml").exists()


def test_what_tuning_won_is_said_against_the_untuned_config(result):
    click, time = against_untuned(result)
    assert click == "click auc +0.0600 ± 0.0000 (better)"
    assert time.startswith("watch_time nrmse -0.1000")


def compared(study, *pairs, test):
    """What is said of the third trial, chosen, against the first."""
    course, _ = drive(study, 3)
    points = [
        a_point(course.trials[0], *pairs, test=[(0.5, 1.0)] * len(pairs)),
        a_point(course.trials[2], *pairs, test=test),
    ]
    result = conclude(study, course.trials, points, Choice(3))
    return against_untuned(result), make_report(result).sections[0].tables[1]


def test_what_the_test_rows_do_not_define_is_not_called_worse(study):
    said, table = compared(study, (0.6, 1.0), (0.6, 1.0), test=[(None, 0.9), (None, 0.8)])
    assert said[0] == "click auc cannot be compared: not defined on these rows"
    assert said[1].startswith("watch_time nrmse -0.1500")
    assert (table.rows[1][1].text, table.rows[1][1].mark) == ("-", "")


def test_of_one_seed_no_interval_is_told(study):
    said, _ = compared(study, (0.6, 1.0), test=[(0.7, 1.0)])
    assert said[0] == "click auc +0.2000 (better with one seed, which says nothing of chance)"
    assert said[1] == "watch_time nrmse +0.0000 (the same with one seed, which says nothing of chance)"


def test_optuna_reads_the_journal(study, tmp_path):
    result, course = a_result(study)
    write(result, make_report(result), course.optuna, tmp_path)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    read = optuna.load_study(study_name="tune", storage=storage)
    assert [t.params for t in read.trials] == [t.params for t in course.optuna.trials]
    assert [t.state.name for t in read.trials].count("FAIL") == 1
    assert read.best_trials


def test_metrics_of_the_page_are_of_both_kinds_of_rows(result):
    titles = [table.title for table in make_report(result).sections[0].tables]
    assert titles == ["Validation rows", "Test rows", "Settings", "Further metrics, test rows", "All trials"]


def test_with_one_seed_there_is_no_interval_and_nothing_is_tested(folder):
    write_space(folder, seeds=1)
    result, _ = a_result(study_in(folder), seeds=1)
    table = make_report(result).sections[0].tables[0]
    assert "±" not in table.rows[1][1].text
    assert "p " not in table.rows[1][1].small
