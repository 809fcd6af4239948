import pytest

from torchrec_mtl.config.overrides import apply_overrides

SCALAR = {
    "train.epochs=2": ("train", "epochs", 2),
    "optim.dense.lr=1e-3": ("optim", "dense", {"lr": 0.001}),
    "run_dir=runs/a=b": ("run_dir", "runs/a=b"),
    "data.train=[a, b]": ("data", "train", ["a", "b"]),
    "tasks.1.weight=2": ("tasks", 1, "weight", 2),
    "tasks.click.weight=2": ("tasks", 0, "weight", 2),
    "features.tables.item.rows=9": ("features", "tables", 1, "rows", 9),
    "features.dense.age.transform=log1p": ("features", "dense", 0, {"name": "age", "transform": "log1p"}),
    "features.dense.0=height": ("features", "dense", 0, "height"),
    "tasks.0.loss.type=focal": ("tasks", 0, "loss", {"type": "focal"}),
    "head=htlnet": ("head", "htlnet"),
    "train.monitor.metric=click/auc": ("train", "monitor", {"metric": "click/auc"}),
}
WRONG = {
    "train.epochs": "expected key.path=value, such as train.epochs=2",
    "=3": "expected key.path=value, such as train.epochs=2",
    "train..epochs=2": "expected key.path=value, such as train.epochs=2",
    "train.epochs=[": (
        "the value is not YAML; put it in quotes (line 1: not YAML: expected the node content, but found the end "
        "(found '['))"
    ),
    "train={epochs: 1, epochs: 2}": "line 1: key 'epochs' is given twice, first on line 1; remove one",
    "tasks.7.weight=2": "there is no item 7; the list has 3, counted from 0",
    "tasks.clik.weight=2": "no item is called 'clik'. Did you mean 'click'?",
    "data.train.x=3": "data.train is a single value, 'train.parquet'; nothing can be set inside it",
    "data.batch_size.x=3": "data.batch_size is a single value, '64'; nothing can be set inside it",
}


@pytest.mark.parametrize(("override", "expected"), SCALAR.items())
def test_values_are_yaml_put_where_the_path_says(raw, override, expected):
    assert apply_overrides(raw, [override]) == []
    *path, value = expected
    node = raw
    for key in path:
        node = node[key]
    assert node == value


@pytest.mark.parametrize(("override", "message"), WRONG.items())
def test_a_wrong_override_is_named_and_the_others_are_applied(raw, override, message):
    assert apply_overrides(raw, [override, "train.seed=5"]) == [f"override '{override}': {message}"]
    assert raw["train"]["seed"] == 5


def test_the_last_of_two_wins(raw):
    assert apply_overrides(raw, ["train.epochs=2", "train.epochs=3"]) == []
    assert raw["train"]["epochs"] == 3


@pytest.mark.parametrize("order", [1, -1])
def test_options_hold_for_the_new_type_in_any_order(raw, order):
    raw["gradient"] = {"type": "htlnet", "core": "watch_time", "alpha": 0.5}
    assert apply_overrides(raw, ["gradient.type=mine", "gradient.beta=2"][::order]) == []
    assert raw["gradient"] == {"type": "mine", "beta": 2}


@pytest.mark.parametrize("order", [1, -1])
def test_options_hold_for_a_section_given_by_name(raw, order):
    raw["head"] = {"type": "single_task", "norm": "batch"}
    assert apply_overrides(raw, ["head=htlnet", "head.tower=[8]"][::order]) == []
    assert raw["head"] == {"type": "htlnet", "tower": [8]}


def test_the_same_type_keeps_its_options(raw):
    raw["head"] = {"type": "single_task", "norm": "batch"}
    assert apply_overrides(raw, ["head.type=single_task"]) == []
    assert raw["head"] == {"type": "single_task", "norm": "batch"}


def test_another_optimizer_keeps_the_learning_rate(raw):
    raw["optim"] = {"sparse": {"type": "adagrad", "lr": 0.1}}
    assert apply_overrides(raw, ["optim.sparse.type=sgd"]) == []
    assert raw["optim"]["sparse"] == {"type": "sgd", "lr": 0.1}


def test_a_typo_in_the_path_is_answered_when_the_config_is_checked(problems):
    assert problems("trian.epochs=2", "train.epochz=2") == [
        "trian: unknown section. Did you mean 'train'?",
        "train.epochz: unknown key. Did you mean 'epochs'?",
    ]
