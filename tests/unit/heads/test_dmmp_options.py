"""Options of DMMP that would do nothing, or cannot work, are refused in words that help."""

import re
from dataclasses import replace

import pytest
import torch

from tests.unit.heads.retrieval_head import SPEC, THREE, B, D, features_of, inputs, labels_and_weights
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.heads.dmmp import DMMP


def task(name, kind="binary", loss="bce", **further):
    return TaskConfig.model_validate(
        {"name": name, "kind": kind, "label": name, "loss": PluginConfig(type=loss), **further}
    )


CHAIN = [task("click"), task("buy")]
# An option -> another value than its default.
OTHER = {
    "teacher": "mmoe",
    "shared_experts": 1,
    "task_experts": 2,
    "expert": (8,),
    "tower": (),
    "entire_space": False,
    "layout": "two_towers",
    "student": (8,),
    "dim": 8,
    "gate": "global",
    "gate_tower": (),
    "normalize": True,
    "temperature": 0.5,
    "distill": "logit_mse",
    "distill_weight": 0.5,
    "detach": False,
    "warmup": 0.5,
    "fuse_weight": 0.5,
    "in_batch_weight": 0.5,
    "training": "two_stage",
    "teacher_epochs": 2,
    "norm": "layer",
}
OF_TEACHER = ("shared_experts", "task_experts", "expert", "tower", "entire_space", "training")
IDLE = [
    *(({"teacher": "none"}, name, "teacher: none") for name in (*OF_TEACHER, "teacher_epochs")),
    *(({"teacher": "none"}, name, "teacher: none") for name in ("distill", "distill_weight", "detach", "warmup")),
    *(({"teacher": "shared_bottom"}, name, "teacher: shared_bottom") for name in ("shared_experts", "task_experts")),
    *(({"distill_weight": 0.0}, name, "distill_weight: 0") for name in ("distill", "detach", "warmup")),
    ({}, "teacher_epochs", "training: joint"),
    ({"training": "two_stage"}, "detach", "training: two_stage"),
    ({"gate": "global"}, "gate_tower", "gate: global"),
    ({"gate": "even"}, "gate_tower", "gate: even"),
]


def problems(options, tasks=CHAIN):
    return DMMP.Config(**options).problems(tasks)


@pytest.mark.parametrize(("options", "idle", "why"), IDLE, ids=str)
def test_an_option_without_effect_is_refused(options, idle, why):
    assert problems(options) == []
    assert problems(options | {idle: OTHER[idle]}) == [f"{idle}: without effect with {why}; remove it"]


def effects(options):
    """All that a head of these options shows and trains: values, and gradients over the phases that count."""
    torch.manual_seed(0)
    head = DMMP(D, THREE, DMMP.Config(**options), features=SPEC).double()
    found, (labels, weights) = [(name, p.shape) for name, p in head.state_dict().items()], labels_and_weights(3)
    for phase in head.phases(3):
        head.begin_phase(phase)
        head.set_progress(0.05, 1)
        given = inputs()
        out = head(given)
        terms = head.terms(out, labels, weights)
        counted = [t.value * t.weight for name, t in terms.items() if phase.tasks is None or name in phase.tasks]
        shown = [*out.logits.values(), *out.predictions.values(), *(t.value for t in terms.values())]
        losses = [torch.stack([t.weight for t in terms.values()]).sum()] if terms else []
        frozen = {id(p) for p, _ in head.update_masks()}
        leaves = [given.shared, *given.features.fields.values(), *(p for p in head.parameters() if id(p) not in frozen)]
        total = sum(value.sum() for value in (*counted, *out.logits.values()))
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        found += [repr(phase), *(float(z.detach().sum()) for z in (*shown, *losses, *gradients))]
    return found


BASES = [
    {},
    {"teacher": "none"},
    {"teacher": "shared_bottom"},
    {"distill_weight": 0.0},
    {"training": "two_stage"},
    {"gate": "even"},
    {"layout": "user_per_task"},
    {"fuse_weight": 0.0},
    {"distill": "soft_label", "entire_space": False},
]


@pytest.mark.parametrize("base", BASES, ids=str)
def test_every_option_has_an_effect_or_is_refused(base):
    assert {"type", *OTHER} == DMMP.Config.model_fields.keys()
    small = {"expert": (6,), "tower": (5,), "student": (7,), "dim": 6, "gate_tower": (4,)}
    before = effects(small | base)
    assert effects(small | base) == before
    for name in OTHER.keys() - base.keys():
        refused = any(text.startswith(f"{name}: without effect") for text in problems(base | {name: OTHER[name]}))
        assert refused == (effects(small | base | {name: OTHER[name]}) == before), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {name: OTHER[name] for name in ("shared_experts", "task_experts", "expert", "tower", "distill", "detach")},
        {"training": "two_stage", "teacher_epochs": 2, "warmup": 0.0},
        {"teacher": "none", "layout": "user_per_task", "gate_tower": (), "normalize": True, "temperature": 0.1},
        {"teacher": "shared_bottom", "expert": (8,), "tower": (), "norm": "batch"},
        {"gate": "even", "fuse_weight": 0.0},
        {"distill_weight": 0.0, "entire_space": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("tasks", [CHAIN[:1], CHAIN, [*CHAIN, task("again")]], ids=len)
def test_what_has_an_effect_is_taken(options, tasks):
    assert problems(options, tasks) == []


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task("click"), task("spend", "regression", "mse")], "and spend is a regression; make it binary .such as"),
        ([task("watch", "regression", "mse")], "and watch is a regression; make it binary"),
        ([task("watch", "regression", "mse"), task("spend", "regression", "mse")], "and watch, spend is a regression"),
        ([task("click"), task("buy", space="click")], "over all rows of 'click'.*'buy' is defined inside space: click"),
        ([task("click"), task("score")], "predictions called score, and a task has that name; rename"),
        ([task("click"), task("click_teacher")], "predictions called click_teacher, and a task has that name"),
    ],
)
def test_tasks_that_are_no_chain_of_probabilities_are_refused(tasks, message):
    (found,) = problems({}, tasks)
    assert re.search(message, found), found


def test_an_order_can_act_on_the_towers_logits():
    assert problems({}, [task("click"), task("buy", order={"below": "click"})]) == []


@pytest.mark.parametrize("gate", ["user", "global"])
def test_a_gate_that_nothing_trains_is_refused(gate):
    (found,) = problems({"gate": gate, "fuse_weight": 0.0}, CHAIN)
    assert found.startswith("fuse_weight: ")
    assert found.endswith("raise it, or take gate: even")
    assert problems({"gate": gate, "fuse_weight": 0.0}, CHAIN[:1]) == []  # one task leaves nothing to choose


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"layot": "two_towers"}, "head.layot: .*Did you mean 'layout'"),
        ({"layout": "2u1i"}, "head.layout: "),
        ({"gate": "item"}, "head.gate: "),
        ({"distill": "mse"}, "head.distill: "),
        ({"teacher": "ple"}, "head.teacher: "),
        ({"temperature": 0}, "head.temperature: expected a number above 0"),
        ({"warmup": 1.5}, "head.warmup: "),
        ({"fuse_weight": -1}, "head.fuse_weight: "),
        ({"expert": []}, "head.expert: "),
        ({"teacher": "none", "warmup": 0.3}, "head.warmup: without effect with teacher: none; remove it"),
        ({"training": "two_stage", "detach": False}, "head.detach: without effect with training: two_stage; remove it"),
        ({"tasks": 3}, "watch_time is a regression"),
    ],
    ids=str,
)
def test_mistakes_in_a_config_are_named(head, message):
    raw = make_config("unused.parquet", run_dir="unused")
    raw["tasks"] = raw["tasks"][: head.pop("tasks", 2)]
    with pytest.raises(ValueError, match="head") as caught:
        parse(raw | {"head": {"type": "dmmp", **head}})
    assert re.search(message, str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, {"user.last.weight": (1, 128, 64), "item.last.weight": (3, 128, 64), "gate.last.weight": (1, 64, 3)}),
        ({"layout": "user_per_task", "dim": 8}, {"user.last.weight": (3, 128, 8), "item.last.weight": (1, 128, 8)}),
        ({"layout": "two_towers"}, {"user.last.weight": (1, 128, 64), "item.last.weight": (1, 128, 64)}),
        ({"student": (9,)}, {"user.mlp.linears.0.weight": (1, 8, 9), "item.mlp.linears.0.weight": (3, 7, 9)}),
        ({"gate_tower": (5, 6)}, {"gate.mlp.linears.1.weight": (1, 5, 6)}),
        ({"gate": "global"}, {"preference": (3,)}),
    ],
    ids=str,
)
def test_options_decide_the_weights(options, shapes):
    weights = dict(DMMP(D, THREE, DMMP.Config(**options), features=SPEC).student.named_parameters())
    assert {name: tuple(weights[name].shape) for name in shapes} == shapes
    assert (
        ("log_scale" in weights) == ("item_bias.last.weight" not in weights) == (options.get("layout") == "two_towers")
    )
    assert ("preference" in weights) == ("gate.last.weight" not in weights) == (options.get("gate") == "global")


def test_in_batch_negatives_need_to_know_the_items_in_training():
    head = DMMP(D, THREE, DMMP.Config(in_batch_weight=1.0), features=SPEC).double()
    given = Representation(inputs().shared, features=replace(features_of(), candidates=None))
    with pytest.raises(ValueError, match=r"head\.in_batch_weight: .*name retrieval\.item"):
        head(given)
    assert not head.eval()(given).hidden["in_batch"].any()
    assert head(given).hidden["in_batch"].shape == (3, B)
