"""Options of NCS4CVR that cannot work are refused with a remedy."""

import re

import pytest

from tests.unit.heads.masked_head import made
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.heads.ncs4cvr import NCS4CVR


def task(name, kind="binary", **further):
    return TaskConfig.model_validate(
        {"name": name, "kind": kind, "label": name, "loss": PluginConfig(type="bce"), **further}
    )


SPEND = task("spend", "regression", gate="buy")


@pytest.mark.parametrize(
    ("options", "tasks", "message"),
    [
        ({"chain": True}, [task("click"), task("spend", "regression")], r"chain: true.*fewer than two .found click"),
        ({"chain": True}, [task("click"), task("buy", space="click")], "over all rows of 'click'"),
        ({}, [task("buy"), SPEND], "choose_by: the RMSE of spend needs .*gate.*set choose_by: loss"),
        ({"masks": "random", "choose": "any"}, [task("buy"), SPEND], "choose_by: the RMSE of spend"),
        ({}, [task("click"), task("buy", weight=0)], "buy has weight 0, and its rounds would train nothing"),
        (
            {"batches": "alternate"},
            [task("click"), task("buy", order={"below": "click"})],
            "batches: alternate never trains buy and click in one step.*remove order",
        ),
        ({"masks": "dense", "density": 0.5}, [task("click")], "density: without effect with masks: dense; remove it"),
        ({"masks": "dense", "warmup_steps": 9}, [task("click")], "warmup_steps: without effect with masks: dense"),
        (
            {"masks": "dense", "batches": "alternate", "mask_updates": False},
            [task("click")],
            "mask_updates: without effect with masks: dense",
        ),
        ({"mask_updates": False}, [task("click")], "mask_updates: without effect with batches: joint"),
        ({"rounds": 1, "grow": 0.5}, [task("click")], "grow: without effect with rounds: 1"),
        ({"choose": "last", "choose_by": "loss"}, [task("click")], "choose_by: without effect with choose: last"),
        ({"masks": "one", "choose_by": "loss"}, [task("click")], "choose_by: without effect with masks: one"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_remedy(options, tasks, message):
    (found,) = NCS4CVR.Config(**options).problems(tasks)
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ({}, [task("click"), task("spend", "regression")]),
        ({"chain": True}, [task("click"), task("buy"), task("watch", "regression")]),
        ({"choose_by": "loss"}, [task("buy"), SPEND]),
        ({"choose": "last"}, [task("buy"), SPEND]),
        ({"masks": "one"}, [task("buy"), SPEND]),
        ({"masks": "dense"}, [task("buy"), SPEND]),
        ({"chain": True}, [task("click")]),
        ({"masks": "one"}, [task("click"), task("buy", weight=0)]),
        ({"batches": "alternate", "mask_updates": False}, [task("click")]),
    ],
    ids=str,
)
def test_what_can_be_trained_is_taken(options, tasks):
    assert NCS4CVR.Config(**options).problems(tasks) == []


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"densty": 0.2}, "head.densty: .*Did you mean 'density'"),
        ({"density": 1.0}, "head.density: expected a number below 1"),
        ({"density": 0}, "head.density: expected a number above 0"),
        ({"rounds": 0}, "head.rounds: "),
        ({"grow": 1.0}, "head.grow: expected a number below 1"),
        ({"shared": []}, "head.shared: "),
        ({"masks": "full"}, "head.masks: "),
        ({"rewind": "tables"}, "head.rewind: "),
    ],
    ids=str,
)
def test_mistakes_in_a_config_are_named(head, message):
    raw = make_config("unused.parquet", run_dir="unused")
    raw["data"]["eval"] = raw["data"]["train"]
    raw["head"] = {"type": "ncs4cvr", **head}
    with pytest.raises(ValueError, match=r"head\.") as caught:
        parse(raw)
    assert re.search(message, str(caught.value)), caught.value


@pytest.mark.parametrize(("head", "needed"), [({}, True), ({"choose": "last"}, False), ({"masks": "dense"}, False)])
def test_files_to_evaluate_on_are_asked_for_where_rounds_are_chosen(head, needed):
    raw = make_config("unused.parquet", run_dir="unused")
    raw["data"].pop("eval", None)
    raw["head"] = {"type": "ncs4cvr", **head}
    if needed:
        with pytest.raises(ValueError, match=r"by their scores on data\.eval; name its files there, or set"):
            parse(raw)
    else:
        parse(raw)


def test_a_chain_has_one_logit_a_task():
    with pytest.raises(ValueError, match=r"ncs4cvr chains one logit .*\['watch'\] ask for more"):
        made({"click": 1, "watch": 2}, chain=True)


def test_a_rule_that_compares_gradients_is_refused_where_steps_take_turns():
    raw = make_config("unused.parquet", run_dir="unused")
    raw["data"]["eval"] = raw["data"]["train"]
    raw |= {"head": {"type": "ncs4cvr", "batches": "alternate"}, "gradient": {"type": "pcgrad"}}
    with pytest.raises(ValueError, match="'pcgrad' compares the tasks' gradients of a step, and head 'ncs4cvr' gives"):
        parse(raw)
    parse(raw | {"gradient": {"type": "uncertainty"}})
    parse(raw | {"head": {"type": "ncs4cvr"}})
