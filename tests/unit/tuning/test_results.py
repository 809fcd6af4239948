import pytest

from tests.unit.tuning.studies import a_point, drive, metrics, study_in, trade_off, write_space
from torchrec_mtl.tuning.choose import Choice
from torchrec_mtl.tuning.results import conclude, finalists, front_of

# click and watch_time of trials 1 to 5: trial 3 beats 1 and 4, trial 5 repeats 2.
PAIRS = [(0.60, 1.00), (0.70, 1.20), (0.65, 0.90), (0.64, 0.95), (0.70, 1.20)]


@pytest.fixture
def trials(study):
    return drive(study, 5, lambda job: metrics(*PAIRS[job.number - 1]))[0].trials


def numbers(trials):
    return [trial.number for trial in trials]


def test_the_front_is_the_trials_that_no_other_beats(trials):
    assert numbers(front_of(trials)) == [2, 3, 5]


def test_the_config_as_it_is_is_trained_with_the_seeds_though_it_is_beaten(study, trials):
    assert numbers(finalists(study, trials, Choice())) == [1, 2, 3, 5]


def test_a_long_front_is_cut_to_points_far_apart(folder):
    write_space(folder, front=2)
    study = study_in(folder)
    trials = drive(study, 5, lambda job: metrics(0.5 + job.number / 20, 1 + job.number / 10))[0].trials
    assert numbers(front_of(trials)) == [1, 2, 3, 4, 5]
    assert numbers(finalists(study, trials, Choice())) == [1, 5]


def test_a_trial_that_is_asked_for_is_trained_with_the_seeds_too(study, trials):
    assert numbers(finalists(study, trials, Choice(4))) == [1, 2, 3, 4, 5]


def test_a_trial_that_failed_cannot_be_asked_for(study):
    def measure(job):
        return "RuntimeError: out of ideas" if job.number == 2 else trade_off(job)

    trials = drive(study, 3, measure)[0].trials
    with pytest.raises(ValueError, match="--choose 2: this trial failed: RuntimeError: out of ideas"):
        finalists(study, trials, Choice(2))


def test_where_every_trial_failed_the_error_says_why(study):
    trials = drive(study, 3, lambda job: "RuntimeError: out of ideas")[0].trials
    with pytest.raises(ValueError, match=r"all 3 trials failed.*RuntimeError: out of ideas"):
        finalists(study, trials, Choice())


def test_the_choice_is_by_means_over_seeds_and_test_rows_have_no_say(study, trials):
    good, bad = [(0.9, 0.5), (0.9, 0.5)], [(0.1, 9.0), (0.1, 9.0)]
    points = [
        a_point(trials[0], (0.60, 1.00), (0.60, 1.00), test=good),
        a_point(trials[1], (0.60, 1.10), (0.58, 1.10), test=good),
        a_point(trials[2], (0.64, 0.92), (0.66, 0.90), test=bad),
    ]
    result = conclude(study, trials, points, Choice())
    assert result.chosen is points[2]
    assert result.untuned is points[0]
    assert result.beaten_by(points[1]) == [points[0], points[2]]
    assert result.beaten_by(points[2]) == []


def test_the_config_as_it_is_can_be_the_choice(study, trials):
    points = [a_point(trials[0], (0.7, 0.9), (0.7, 0.9)), a_point(trials[2], (0.6, 0.9), (0.6, 0.9))]
    assert conclude(study, trials, points, Choice()).chosen is points[0]


def test_preferences_move_the_choice(study, trials):
    points = [a_point(trials[1], (0.70, 1.2), (0.70, 1.2)), a_point(trials[2], (0.65, 0.9), (0.65, 0.9))]
    assert conclude(study, trials, points, Choice(prefer={"click/auc": 5.0})).chosen is points[0]
    assert conclude(study, trials, points, Choice(prefer={"watch_time/nrmse": 5.0})).chosen is points[1]
    assert conclude(study, trials, points, Choice(3, {})).chosen is points[1]


def test_a_point_that_lacks_a_seed_is_never_chosen(study, trials):
    points = [a_point(trials[0], (0.6, 1.0), (0.6, 1.0)), a_point(trials[2], (0.9, 0.1), None)]
    result = conclude(study, trials, points, Choice())
    assert result.chosen is points[0]
    assert conclude(study, trials, points[1:], Choice()).chosen is None


def test_differences_are_paired_by_seed(study, trials):
    one, other = a_point(trials[0], (0.6, 1.0), (0.7, 1.0)), a_point(trials[2], (0.65, 1.0), (0.75, 1.0))
    difference = other.difference(one, study.objectives[0], "validation")
    assert difference.mean == pytest.approx(0.05)
    assert difference.half == pytest.approx(0, abs=1e-9)
