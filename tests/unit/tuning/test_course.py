import pytest

from tests.unit.tuning.studies import drive, metrics, study_in, trade_off, write_space
from torchrec_mtl.tuning.course import replay, seed_jobs
from torchrec_mtl.tuning.rows import open_log


def words_of(jobs):
    return [job.words for job in jobs]


def test_the_first_trial_is_the_config_as_it_is_and_no_other_is(study):
    course, jobs = drive(study, 7)
    assert jobs[0].words == ()
    assert jobs[0].run == study.run
    assert all(job.words for job in jobs[1:])
    assert [trial.number for trial in course.trials] == [1, 2, 3, 4, 5, 6, 7]
    assert len(set(words_of(jobs))) == 7


def test_all_trials_have_the_tuning_seed_and_are_scored_on_validation_rows(study):
    _, jobs = drive(study, 5)
    assert {job.key[1:] for job in jobs} == {(1000, "validation")}


def test_proposals_stay_in_the_space(study):
    _, jobs = drive(study, 12)
    assert all(0.00099 < job.run.optim.dense.lr < 0.101 for job in jobs[1:])


def test_results_have_a_say_after_the_first_round(study):
    _, jobs = drive(study, 9)
    _, others = drive(study, 9, lambda job: metrics(1 - job.run.optim.dense.lr, 1 - job.run.optim.sparse.lr))
    assert words_of(jobs)[:3] == words_of(others)[:3]
    assert words_of(jobs)[3:] != words_of(others)[3:]


@pytest.mark.parametrize("first", [1, 2, 3, 4, 6])
def test_a_study_made_longer_is_the_one_that_was_never_stopped(study, tmp_path, first):
    whole, jobs = drive(study, 8)
    log = open_log(tmp_path)
    drive(study, first, log=log)
    longer, again = drive(study, 8, log=log)
    assert words_of(again) == words_of(jobs)
    assert [t.gains for t in longer.trials] == [t.gains for t in whole.trials]


@pytest.mark.parametrize("known", range(9))
def test_replay_comes_as_far_as_the_log_does(study, tmp_path, known):
    whole = open_log(tmp_path / "whole")
    full, _ = drive(study, 8, log=whole)
    part = open_log(tmp_path / "part")
    for row in whole.rows[:known]:
        part.append(row)
    found = replay(study, 8, open_log(tmp_path / "part"))
    assert len(found.trials) + len(found.known) == known
    assert found.trials == full.trials[: len(found.trials)]
    assert len(found.trials) in {0, 3, 5, 7, 8}  # rounds that are over


def test_a_failed_trial_is_kept_and_the_search_goes_on(study):
    def measure(job):
        return "RuntimeError: out of ideas" if job.number in {1, 4} else trade_off(job)

    course, _ = drive(study, 8, measure)
    assert [t.number for t in course.trials if t.gains is None] == [1, 4]
    assert course.trials[3].row.error == "RuntimeError: out of ideas"
    assert len([t for t in course.optuna.trials if t.state.name == "COMPLETE"]) == 6


def test_an_objective_that_is_not_defined_is_a_failure_that_says_so(study):
    course, _ = drive(study, 3, lambda job: metrics(None, 1.0))
    assert all(t.gains is None for t in course.trials)
    assert "click/auc: not defined on the validation rows" in course.trials[0].row.error


def test_settings_that_turn_out_not_to_go_together_fail_their_trial_alone(folder):
    write_space(folder, search={"data.batch_size": {"low": 64, "high": 128}})
    course, jobs = drive(study_in(folder), 8)
    failed = [t for t in course.trials if t.gains is None]
    assert failed
    assert len(jobs) == 8 - len(failed)
    assert all("is not a multiple of data.streams" in t.row.error for t in failed)


def test_a_config_outside_the_space_is_tried_first_all_the_same(folder):
    study = study_in(folder, "optim.dense.lr=0.5")
    course, jobs = drive(study, 5)
    assert jobs[0].words == ()
    assert len(course.optuna.trials) == 4


def test_with_weights_there_is_one_number(folder):
    write_space(folder, weights={"click": 1, "watch_time": 1})
    course, _ = drive(study_in(folder), 5)
    assert all(len(t.gains) == 1 for t in course.trials)
    assert course.trials[0].row.score == course.trials[0].gains[0]


def test_each_seed_is_a_run_of_its_own_scored_on_the_test_rows(study):
    course, _ = drive(study, 3)
    jobs = seed_jobs(study, course.trials[1])
    assert [job.key[1:] for job in jobs] == [(0, "test"), (1, "test")]
    assert {job.words for job in jobs} == {course.trials[1].words}
