"""What the command counts, with made-up results in the log."""

import io
import json

import pytest
from rich.console import Console

from tests.unit.tuning.studies import a_point, drive, study_in, trade_off, write_space
from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.tuning import command
from torchrec_mtl.tuning.choose import Choice
from torchrec_mtl.tuning.command import Options, tune
from torchrec_mtl.tuning.folder import enter, note_trials
from torchrec_mtl.tuning.results import conclude
from torchrec_mtl.tuning.rows import open_log

# Six settings, and some of them more than once.
SMALL = {"optim.dense.lr": {"choices": [0.003, 0.01, 0.03]}, "optim.sparse.lr": {"choices": [0.01, 0.02]}}


@pytest.fixture
def count(folder):
    """Return what a dry run counts."""

    def run(*, trials, choose="ideal", fresh=False):
        options = Options(
            folder / "run.yaml",
            folder / "space.yaml",
            (),
            trials,
            folder / "out",
            choose=choose,
            fresh=fresh,
            dry_run=True,
        )
        return json.loads(tune(options, Console(file=io.StringIO())))

    return run


def searched(folder, trials, measure=trade_off, *, ended=True):
    """Make up a search in ``out``; return how many rows it left."""
    study, out = study_in(folder), folder / "out"
    out.mkdir()
    enter(out, study, fresh=False)
    log = open_log(out)
    drive(study, trials, measure, log=log)
    if ended:
        note_trials(out, study, trials)
    return len(log.rows)


def test_trials_that_repeat_a_config_are_counted_though_they_have_no_row(folder, count):
    write_space(folder, search=SMALL)
    assert searched(folder, 16) < 8
    found = count(trials=2)
    assert (found["trials"], found["known_trials"]) == (16, 16)
    assert count(trials=18)["trials"] == 18
    assert (count(trials=2, fresh=True)["trials"], count(trials=2, fresh=True)["known_trials"]) == (2, 0)


def test_trials_whose_settings_do_not_go_together_are_counted(folder, count):
    write_space(folder, search={"data.batch_size": {"low": 64, "high": 128}})
    assert searched(folder, 8) < 8
    assert count(trials=2)["trials"] == 8


def test_a_search_that_was_killed_counts_as_far_as_its_rows_lead(folder, count):
    write_space(folder, search=SMALL)
    rows = searched(folder, 16, ended=False)
    last = max(row.number for row in open_log(folder / "out").rows)
    assert last > rows  # repeats lie between
    assert count(trials=1)["trials"] >= last


def test_a_dry_run_counts_the_trial_that_is_asked_for(folder, count):
    plain = count(trials=12)
    asked = count(trials=12, choose="7")
    assert asked["most_points"] == plain["most_points"] + 1 == 10
    assert asked["most_runs"] == plain["most_runs"] + 2
    assert count(trials=3, choose="2")["most_points"] == 3


def test_a_dry_run_refuses_a_trial_that_will_not_be_there(folder, count):
    with pytest.raises(ConfigError, match="--choose 99: there are trials 1 to 4"):
        count(trials=4, choose="99")


def test_where_only_the_trial_asked_for_lacks_a_seed_that_is_said(folder, study):
    course, _ = drive(study, 3)
    points = [a_point(course.trials[0], (0.6, 1.0), (0.6, 1.0)), a_point(course.trials[1], (0.7, 1.0), None)]
    for choice, said in (
        (Choice(2), "nothing is chosen: a seed of trial 2 failed; --retry-failed runs it again"),
        (Choice(), "chosen: the config as it is"),
    ):
        console = Console(file=io.StringIO(), width=200)
        command._show(conclude(study, course.trials, points, choice), folder, console)
        assert said in console.file.getvalue()
        assert "no point was trained" not in console.file.getvalue()
