import pytest

from tests.unit.bench.suites import a_row, open_suite, write_suite
from torchrec_mtl.bench.rows import Log
from torchrec_mtl.bench.tuning import Outcome, plan, replay


def drive(suite, pair, score, log=None):
    """Answer a plan with made-up rows; return its outcome and jobs."""
    outcome, jobs = Outcome(pair), []
    course = plan(suite, outcome)
    wanted = next(course)
    while True:
        jobs += wanted
        rows = [a_row(job, score=score(job), status="failed" if score(job) == "fails" else "ok") for job in wanted]
        for row in rows if log is not None else ():
            log.append(row)
        try:
            wanted = course.send(rows)
        except StopIteration:
            return outcome, jobs


def rate(job):
    return job.run.optim.dense.lr


@pytest.fixture
def tuned(folder):
    write_suite(folder, trials=5)
    suite, pairs = open_suite(folder)
    return suite, pairs["shared_bottom"]


def test_the_first_trial_takes_the_settings_as_they_are(tuned):
    _, jobs = drive(*tuned, rate)
    assert jobs[0].words == ()
    assert jobs[0].run == tuned[1].run


def test_the_budget_is_met_then_every_seed_is_trained_with_the_best_trial_s_settings(tuned):
    outcome, jobs = drive(*tuned, rate)
    trials, seeds = jobs[:5], jobs[5:]
    assert [job.key[1:] for job in trials] == [(1000, "validation")] * 5
    assert [job.key[1:] for job in seeds] == [(0, "test"), (1, "test")]
    best = max(trials, key=rate)
    assert {job.words for job in seeds} == {best.words}
    assert outcome.finished
    assert outcome.best.score == rate(best)


def test_proposals_stay_in_the_space_and_differ(tuned):
    _, jobs = drive(*tuned, rate)
    rates = [rate(job) for job in jobs[1:5]]
    assert all(0.00099 < lr < 0.101 for lr in rates)
    assert len(set(rates)) == 4


def test_proposals_depend_on_scores_alone_not_on_what_else_is_in_the_suite(tuned, folder):
    _, jobs = drive(*tuned, rate)
    write_suite(folder, trials=5, models={"shared_bottom": {"set": {"head.shared": [8]}, "role": "baseline"}})
    suite, pairs = open_suite(folder)
    assert [job.words for job in drive(suite, pairs["shared_bottom"], rate)[1]] == [job.words for job in jobs]


def test_models_meet_different_proposals(folder):
    suite, pairs = open_suite(folder)
    one, other = (drive(suite, pairs[name], rate)[1][1].words for name in ("shared_bottom", "htlnet"))
    assert one != other


def test_a_failed_trial_and_one_without_score_are_never_the_best(tuned):
    answers = {1: "fails", 2: None, 3: 0.2, 4: 0.1, 5: 0.15}
    outcome, jobs = drive(*tuned, lambda job: answers[job.number] if job.phase == "trial" else 0.0)
    assert outcome.best.score == 0.2
    assert {job.words for job in jobs[5:]} == {jobs[2].words}


def test_where_every_trial_fails_no_seed_is_trained(tuned):
    outcome, jobs = drive(*tuned, lambda job: "fails")
    assert len(jobs) == 5
    assert (outcome.best, outcome.seeds, outcome.finished) == (None, [], True)


def test_without_a_space_there_is_one_trial(folder):
    write_suite(folder, search={})
    suite, pairs = open_suite(folder)
    assert len(drive(suite, pairs["htlnet"], rate)[1]) == 1 + 2


def test_own_settings_outside_the_space_are_tried_first_all_the_same(folder):
    write_suite(folder, search={"optim.dense.lr": {"low": 0.01, "high": 0.1}}, trials=3)
    suite, pairs = open_suite(folder)
    _, jobs = drive(suite, pairs["htlnet"], rate)
    assert jobs[0].words == ()
    assert all(0.0099 < rate(job) < 0.101 for job in jobs[1:3])


def test_whole_numbers_and_choices_of_any_kind_are_searched(folder):
    search = {"data.prefetch": {"low": 2, "high": 5}, "head.tower": {"choices": [[8], [8, 4]]}}
    write_suite(folder, search=search, trials=6)
    suite, pairs = open_suite(folder)
    runs = [job.run for job in drive(suite, pairs["shared_bottom"], rate)[1][:6]]
    assert {run.head.tower for run in runs} == {(8,), (8, 4)}
    assert all(isinstance(run.data.prefetch, int) and 2 <= run.data.prefetch <= 5 for run in runs)


@pytest.mark.parametrize("known", [0, 2, 5, 6, 7])
def test_replay_comes_as_far_as_the_log_does(tuned, tmp_path, known):
    suite, pair = tuned
    whole = Log(tmp_path / "whole.jsonl")
    full, _ = drive(suite, pair, rate, whole)
    part = Log(tmp_path / "part.jsonl")
    for row in whole.rows[:known]:
        part.append(row)
    outcome = Outcome(pair)
    replay(suite, outcome, part)
    assert outcome.trials == full.trials[: min(known, 5)]
    assert outcome.seeds == full.seeds[: max(known - 5, 0)]
    assert outcome.finished == (known == 7)
