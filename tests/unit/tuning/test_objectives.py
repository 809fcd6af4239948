import pytest

from tests.unit.tuning.studies import metrics, study_in, write_space
from torchrec_mtl.config.load import ConfigError, load_config
from torchrec_mtl.tuning.objectives import Objective, objectives_of, weights_by_name
from torchrec_mtl.tuning.space import load_space

CLICK, TIME = Objective("click", "auc"), Objective("watch_time", "nrmse")


def test_by_default_there_is_one_a_trained_task(folder):
    write_space(folder, objectives=None)
    assert [o.name for o in study_in(folder).objectives] == ["click/auc", "long_view/auc", "watch_time/nrmse"]
    untrained = study_in(folder, "tasks.long_view.weight=0")
    assert [o.name for o in untrained.objectives] == ["click/auc", "watch_time/nrmse"]


def test_where_a_corpus_is_searched_recall_is_the_default(folder):
    run = load_config("examples/movielens/dmmp.yaml")
    space = load_space(write_space(folder, objectives=None))
    assert {o.metric for o in objectives_of(space, run)} == {f"recall@{run.retrieval.ks[0]}"}


def test_gains_are_higher_where_the_metric_is_better(study):
    assert study.gains(metrics(0.7, 1.2)) == (0.7, -1.2)
    assert study.gains(metrics(0.7, None)) is None
    assert study.gains(metrics(float("nan"), 1.2)) is None
    assert study.undefined(metrics(0.7, None)) == ["watch_time/nrmse"]


def test_with_weights_the_search_has_one_number(folder):
    write_space(folder, weights={"click": 2, "watch_time/nrmse": 0.5})
    assert study_in(folder).gains(metrics(0.7, 1.2)) == (pytest.approx(2 * 0.7 - 0.5 * 1.2),)


@pytest.mark.parametrize(
    ("replaced", "text"),
    [
        ({"objectives": {"clck": "auc"}}, "objectives.clck: no task is called 'clck'. Did you mean 'click'?"),
        ({"objectives": {"click": "aoc"}}, "objectives.click: nothing to maximise in 'aoc' of a binary task."),
        ({"objectives": {"click": "calibration"}}, "nothing to maximise in 'calibration'"),
        ({"objectives": {"click": "gauc"}}, "objectives.click: gauc needs groups; name their column in data.group"),
        ({"objectives": {"click": ["auc", "auc"]}}, "objectives.click: auc is given twice; remove one"),
        ({"weights": {"clck": 1}}, "weights.clck: no objective is called 'clck'. Did you mean 'click'?"),
        ({"weights": {"click": 1}}, "weights: none for watch_time/nrmse; give each objective one"),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(folder, replaced, text):
    write_space(folder, **replaced)
    with pytest.raises(ConfigError) as caught:
        study_in(folder)
    assert any(text in line for line in caught.value.problems), caught.value.problems


def test_a_task_names_its_objective_where_it_has_one():
    both = [CLICK, TIME, Objective("watch_time", "gini")]
    found, wrong = weights_by_name([("click", 2.0), ("watch_time/gini", 3.0)], both, "--prefer {}")
    assert (found, wrong) == ({"click/auc": 2.0, "watch_time/gini": 3.0}, [])
    _, wrong = weights_by_name([("watch_time", 2.0), ("click", 1.0), ("click/auc", 1.0)], both, "--prefer {}")
    assert wrong == [
        "--prefer watch_time: this task has 2 objectives; say watch_time/nrmse or watch_time/gini",
        "--prefer click/auc: click/auc has a weight already; remove one",
    ]
