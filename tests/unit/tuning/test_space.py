import pytest

from tests.unit.tuning.studies import write_space
from torchrec_mtl.config.explain import ConfigError
from torchrec_mtl.tuning.space import load_space


def problems(folder, **replaced):
    with pytest.raises(ConfigError) as caught:
        load_space(write_space(folder, **replaced))
    return caught.value.problems


def test_a_number_of_seeds_stands_for_the_first_so_many(tmp_path):
    assert load_space(write_space(tmp_path, seeds=4)).seeds == (0, 1, 2, 3)
    assert load_space(write_space(tmp_path, seeds=[7, 3])).seeds == (7, 3)
    assert load_space(write_space(tmp_path, seeds=None)).seeds == (0, 1, 2)


def test_objectives_are_a_metric_or_several_a_task(tmp_path):
    space = load_space(write_space(tmp_path, objectives={"click": "auc", "watch_time": ["nrmse", "gini"]}))
    assert [(w.task, w.metrics) for w in space.objectives] == [("click", ("auc",)), ("watch_time", ("nrmse", "gini"))]


def test_all_problems_are_told_at_once_with_their_path_and_the_fix(tmp_path):
    search = {"optim.dense.lr": {"low": 1, "high": 0.5}, "head.tower": {"choice": [[8]]}}
    found = problems(tmp_path, search=search, searchh={}, seeds=[1, 1], rounds=3)
    assert any(line.startswith("search.optim.dense.lr: low must be below high (found 1") for line in found)
    assert "search.head.tower.choice: unknown key. Did you mean 'choices'?" in found
    assert "searchh: unknown key. Did you mean 'search'?" in found
    assert "rounds: unknown key. Did you mean 'round'?" in found


@pytest.mark.parametrize(
    ("replaced", "text"),
    [
        ({"search": {}}, "search: expected a list of at least 1"),
        ({"search": None}, "search: missing. Settings of the run"),
        ({"search": ["optim.dense.lr"]}, "search: expected a mapping of names"),
        ({"seeds": 0}, "seeds: expected how many seeds, 1 to 100, or a list of them (found 0)"),
        ({"seeds": 10_000_000}, "seeds: expected how many seeds"),
        ({"seeds": True}, "seeds: expected a number"),
        ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
        ({"seeds": [1000]}, "tuning_seed: 1000 is one of seeds"),
        ({"objectives": "auc"}, "objectives: expected a metric a task, such as {click: auc} (found 'auc')"),
        ({"objectives": {"click": 3}}, "objectives.click.metrics: expected a list, such as [3]"),
        ({"weights": {"click": 0}}, "weights.click.weight: expected a number above 0"),
        ({"weights": 2}, "weights: expected a number an objective"),
        ({"round": 0}, "round: expected a number above 0 (found 0)"),
    ],
)
def test_what_is_wrong_is_said_with_what_was_found(tmp_path, replaced, text):
    assert any(text in line for line in problems(tmp_path, **replaced)), problems(tmp_path, **replaced)


@pytest.mark.parametrize("text", ["", "- 1", "search: [", "3"])
def test_a_file_that_is_no_space_is_an_error(tmp_path, text):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_space(tmp_path / "space.yaml")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; give a space as YAML"):
        load_space(tmp_path / "nothing.yaml")
