"""HoME equals its equations written out; its mask keeps groups and tasks from each other's experts."""

import pytest
import torch

from tests.unit.heads.reference import tower
from tests.unit.heads.reference_sets import expert
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.heads.home import HoME
from torchrec_mtl.model import build_model
from torchrec_mtl.testing import check_head

OUTPUTS = {"click": 1, "buy": 1, "spend": 2}
TASKS = tuple(OUTPUTS)
B, D, K = 6, 5, len(OUTPUTS)
GROUPS = (("click", "spend"), ("buy",))
GROUP_OF = (0, 1, 0)


def made(per_task=False, **options):
    torch.manual_seed(0)
    default = {"groups": GROUPS, "meta": (7,), "expert": (6, 4), "tower": (3,), "rank": 2, "norm": "none"}
    head = HoME(D, OUTPUTS, HoME.Config(**{**default, **options}))
    views = tuple(torch.randn(B, D, requires_grad=True) for _ in OUTPUTS) if per_task else None
    return head, Representation(torch.randn(B, D, requires_grad=True), views)


def experts_of(head, sets, gates, inputs):
    """All experts' values, set by set, for each set's input."""
    act = {"swish": torch.nn.functional.silu, "relu": torch.relu}[head.config.activation]
    values = []
    for s, x in enumerate(inputs):
        read = x if gates is None else x * 2 * torch.sigmoid(x @ gates.down.weight[s] @ gates.up.weight[s])
        values.append([expert(sets, s, i, read, act, head.config.norm) for i in range(head.config.experts)])
    return values


def mixed(unit, u, x, values, sources):
    """Mixture u of the named sets, its own the last."""
    read = [value for s in sources for value in values[s]]
    gate = torch.softmax(x @ unit.gates.linear.weight[u], dim=1)
    out = sum(gate[:, i : i + 1] * value for i, value in enumerate(read))
    if unit.own is not None:
        own = x @ unit.own.weight[u] + unit.own.bias[u]
        own = torch.sigmoid(own) if own.shape[1] == 1 else torch.softmax(own, dim=1)
        out = out + sum(own[:, i : i + 1] * value for i, value in enumerate(values[sources[-1]]))
    return out


def written_out(head, representation):
    x = [torch.stack([representation.of_task(k) for k in range(K) if GROUP_OF[k] == g]).mean(0) for g in range(2)]
    level_1 = experts_of(head, head.meta, head.meta_inputs, [representation.shared, *x])
    z_0 = mixed(head.shared_mix, 0, representation.shared, level_1, (1, 2, 0))
    z = [mixed(head.group_mix, g, x[g], level_1, (0, 1 + g)) for g in range(2)]
    level_2 = experts_of(head, head.experts, head.inputs, [z_0, *z, *(z[g] for g in GROUP_OF)])
    logits = []
    for k, g in enumerate(GROUP_OF):
        read = torch.cat([z[g], z_0], 1)
        logits.append(tower(head.towers, k, mixed(head.task_mix, k, read, level_2, (0, 1 + g, 3 + k))))
    return logits


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"experts": 3},
        {"feature_gate": False, "tower": ()},
        {"self_gate": False},
        {"activation": "relu", "experts": 2, "self_gate": False, "feature_gate": False},
    ],
)
def test_logits_equal_the_equations(options, per_task):
    head, representation = made(per_task, **options)
    found = head(representation).logits
    for (task, width), expected in zip(OUTPUTS.items(), written_out(head, representation), strict=True):
        torch.testing.assert_close(found[task].view(B, -1), expected[:, :width])


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_gradients_equal_those_of_the_equations_with_norms(norm):
    head, representation = made(True, norm=norm, experts=2, tower=())
    leaves = [*representation.per_task, representation.shared, *head.parameters()]
    found = torch.cat([z.view(B, -1) for z in head(representation).logits.values()], 1)
    expected = torch.cat(
        [z[:, :width] for z, width in zip(written_out(head, representation), OUTPUTS.values(), strict=True)], 1
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(found)
    pairs = [
        torch.autograd.grad((z * weights).sum(), leaves, materialize_grads=True, allow_unused=True)
        for z in (found, expected)
    ]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("task", range(K))
def test_mask_keeps_tasks_from_the_experts_of_others(task):
    head, representation = made(experts=2, tower=())
    head(representation).logits[TASKS[task]].sum().backward()
    reached = (head.experts.first.weight.grad.abs().sum((1, 2)) > 0).tolist()
    g = GROUP_OF[task]
    assert reached == [s in {0, 1 + g, 3 + task} for s in range(3 + K)]
    assert (head.group_mix.gates.linear.weight.grad.abs().sum((1, 2)) > 0).tolist() == [g == 0, g == 1]


def test_self_gate_trains_own_experts_that_the_gate_leaves_out():
    for self_gate in (True, False):
        head, representation = made(self_gate=self_gate, tower=())
        with torch.no_grad():
            head.task_mix.gates.linear.weight.zero_()
            head.task_mix.gates.linear.weight[:, :, 2] = -1e4  # the own expert
            head.shared_mix.gates.linear.weight.zero_()
        positive = Representation(representation.shared.detach().abs() + 1)
        with torch.no_grad():
            head.meta.first.weight.abs_()  # so that what level 2 reads is positive
        head(positive).logits["buy"].sum().backward()
        trained = head.experts.first.weight.grad[3 + 1].abs().sum() > 0
        assert bool(trained) == self_gate


def test_experts_have_like_distributions_whatever_their_weights():
    head, _ = made(norm="batch", tower=(), self_gate=False, feature_gate=False)
    with torch.no_grad():
        head.meta.first.weight.mul_(torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1))
    values = head.meta(torch.randn(500, D))
    scales = values.std((1, 2, 3))
    assert scales.max() / scales.min() < 1.2


def test_groups_are_by_default_binary_tasks_and_regressions():
    raw = make_config("unused.parquet", run_dir="unused") | {"head": {"type": "home"}}
    assert build_model(parse(raw), {}, tables="cpu").objective.head.group_of == (0, 0, 1)
    raw["head"]["groups"] = [["long_view", "watch_time"], ["click"]]
    assert build_model(parse(raw), {}, tables="cpu").objective.head.group_of == (1, 0, 0)
    raw = make_config("unused.parquet", run_dir="unused") | {"head": {"type": "home"}}
    raw["tasks"] = raw["tasks"][:2]
    assert build_model(parse(raw), {}, tables="cpu").objective.head.group_of == (0, 0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["click", "long_vew"], ["watch_time"]], "no task is called 'long_vew'. Did you mean 'long_view'?"),
        ([["click"], ["watch_time"]], "task 'long_view' is named 0 times; name every task once"),
        ([["click", "long_view"], ["watch_time", "click"]], "task 'click' is named 2 times"),
    ],
)
def test_groups_that_miss_or_repeat_a_task_are_refused(groups, message):
    raw = make_config("unused.parquet", run_dir="unused") | {"head": {"type": "home", "groups": groups}}
    with pytest.raises(ValueError, match=r"head\.groups: ") as caught:
        parse(raw)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"experts": 2, "norm": "layer", "activation": "relu"},
        {"feature_gate": False, "self_gate": False, "norm": "none", "tower": ()},
    ],
)
@pytest.mark.parametrize("outputs", [("watch",), ("click", "watch"), {"click": 1, "long_view": 1, "watch": 3}])
def test_keeps_the_promises_of_a_head(options, outputs):
    config = HoME.Config(**{"meta": (8,), "expert": (6,), "tower": (4,), "rank": 2, **options})
    check_head(HoME, config, outputs=outputs, in_features=5)


def test_keeps_the_promises_of_a_head_with_named_groups():
    config = HoME.Config(meta=(8,), expert=(6,), groups=(("click", "watch_time"), ("long_view",)))
    check_head(HoME, config)


def test_trains_in_a_whole_model():
    before, after = losses_over_training(HoME, HoME.Config(meta=(8,), expert=(8,), tower=(4,)))
    assert (after < before).all()
