import pytest

from torchrec_mtl.bench.scores import MAIN, MORE, PRIMARY, direction, score, score_problem
from torchrec_mtl.config.checks_tasks import METRICS
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.losses.binary import BinaryCrossEntropy

TASKS = [
    TaskConfig(name=name, kind=kind, label=name, loss=BinaryCrossEntropy.Config(), weight=weight)
    for name, kind, weight in (("click", "binary", 1), ("spend", "regression", 1), ("unused", "binary", 0))
]
VALUES = {"click": {"auc": 0.8, "logloss": 0.3}, "spend": {"gini": 0.4, "nrmse": 0.9}, "unused": {"auc": 0.1}}


def test_auto_is_the_mean_of_auc_and_gini_of_the_tasks_that_are_trained():
    assert score("auto", TASKS, VALUES) == pytest.approx(0.6)


def test_a_metric_of_which_less_is_better_is_turned_round():
    assert score("click/logloss", TASKS, VALUES) == -0.3
    assert score("spend/gini", TASKS, VALUES) == 0.4


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_an_undefined_metric_leaves_no_score(value):
    assert score("auto", TASKS, {**VALUES, "spend": {"gini": value}}) is None


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("auc", "expected auto, or task/metric such as click/auc"),
        ("clck/auc", "no task is called 'clck'. Did you mean 'click'?"),
        ("click/gini", "nothing to maximise in 'gini' of a binary task"),
        ("click/calibration", "nothing to maximise in 'calibration'"),
    ],
)
def test_a_rule_that_cannot_score_is_named(rule, text):
    assert text in score_problem(rule, TASKS)


def test_the_mean_of_a_metric_is_over_the_tasks_that_are_trained():
    values = {"click": {"recall@5": 0.2}, "spend": {"recall@5": 0.4}, "unused": {"recall@5": 0.9}}
    assert score("mean/recall@5", TASKS, values) == pytest.approx(0.3)
    assert score_problem("mean/recall@5", TASKS, ["recall@5", "coverage@5"]) is None
    assert "nothing to maximise in 'recall@7'" in score_problem("mean/recall@7", TASKS, ["recall@5"])
    assert "nothing to maximise in 'coverage@5'" in score_problem("click/coverage@5", TASKS, ["coverage@5"])


def test_where_no_tasks_own_loss_counts_all_tasks_do():
    tasks = [task.model_copy(update={"weight": 0.0}) for task in TASKS[:2]]
    assert score("auto", tasks, VALUES) == pytest.approx(0.6)


@pytest.mark.parametrize("rule", ["auto", "click/auc", "spend/nrmse"])
def test_a_rule_that_can_is_not(rule):
    assert score_problem(rule, TASKS) is None


def test_every_metric_has_a_direction_but_calibration():
    assert {m for names in METRICS.values() for m in names if not direction(m)} == {"calibration"}


@pytest.mark.parametrize("kind", list(METRICS))
def test_tables_show_metrics_that_there_are(kind):
    assert {*MAIN[kind], *MORE[kind], PRIMARY[kind]} <= set(METRICS[kind])
