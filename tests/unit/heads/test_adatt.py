"""AdaTT equals its equations written out, level by level, task by task, and expert by expert."""

import pytest
import torch

from tests.unit.heads.reference import tower
from tests.unit.heads.reference_sets import expert
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.adatt import AdaTT
from torchrec_mtl.testing import check_head

OUTPUTS = {"click": 1, "buy": 1, "spend": 2}
TASKS = tuple(OUTPUTS)
B, D, K = 6, 5, len(OUTPUTS)


def made(per_task=False, **options):
    torch.manual_seed(0)
    head = AdaTT(D, OUTPUTS, AdaTT.Config(**{"levels": ((7,), (6, 4)), "tower": (3,), **options}))
    views = tuple(torch.randn(B, D, requires_grad=True) for _ in OUTPUTS) if per_task else None
    return head, Representation(torch.randn(B, D, requires_grad=True), views)


def fused(level, u, inputs, num_own, num_shared, norm):
    """Unit u of a level: a task, or K for the shared experts; ``inputs`` by unit."""
    owners = [k for k in range(K) for _ in range(num_own)] + [K] * num_shared
    values = [expert(level.task_experts, k, i, inputs[k], norm=norm) for k in range(K) for i in range(num_own)]
    values += [expert(level.shared_experts, 0, i, inputs[K], norm=norm) for i in range(num_shared)]
    gate = torch.softmax(inputs[u] @ level.gates.weight[u] + level.gates.bias[u], dim=1)
    out = sum(gate[:, e : e + 1] * value for e, value in enumerate(values))
    for e, value in enumerate(values):
        if owners[e] == u:
            out = out + (1.0 if level.native_weights is None else level.native_weights[e]) * value
    return out


def written_out(head, representation):
    num_own, num_shared, norm = head.config.task_experts, head.config.shared_experts, head.config.norm
    inputs = [*(representation.of_task(k) for k in range(K)), representation.shared]
    for i, level in enumerate(head.levels):
        units = range(K + (num_shared > 0 and i + 1 < len(head.levels)))
        inputs = [fused(level, u, inputs, num_own, num_shared, norm) for u in units]
    return [tower(head.towers, k, inputs[k]) for k in range(K)]


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task_experts": 2},
        {"shared_experts": 1, "levels": ((4,), (4,), (3,))},
        {"task_experts": 3, "shared_experts": 2, "levels": ((4,), (3,)), "tower": ()},  # enough for one batched product
        {"levels": ((4,),), "shared_experts": 1},
    ],
)
def test_logits_equal_the_equations(options, per_task):
    head, representation = made(per_task, **options)
    found = head(representation).logits
    for (task, width), expected in zip(OUTPUTS.items(), written_out(head, representation), strict=True):
        torch.testing.assert_close(found[task].view(B, -1), expected[:, :width])


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_gradients_equal_those_of_the_equations_with_norms(norm):
    options = {"task_experts": 2, "shared_experts": 1, "norm": norm, "tower": ()}
    head, representation = made(True, **options)
    leaves = [*representation.per_task, representation.shared, *head.levels.parameters()]
    found = torch.cat([z.view(B, -1) for z in head(representation).logits.values()], 1)
    expected = torch.cat(
        [z[:, :width] for z, width in zip(written_out(head, representation), OUTPUTS.values(), strict=True)], 1
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(found)
    pairs = [
        torch.autograd.grad((z * weights).sum(), leaves, materialize_grads=True, allow_unused=True)
        for z in (found, expected)
    ]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_own_experts_count_even_where_the_gate_leaves_them_out():
    head, representation = made(levels=((4,),), tower=())
    with torch.no_grad():
        head.levels[0].gates.bias[0] = torch.tensor([0.0, 100.0, 0.0])  # task 0 chooses the expert of task 1
    head(representation).logits["click"].sum().backward()
    reached = head.levels[0].task_experts.first.weight.grad.abs().sum((1, 2)) > 1e-6
    assert reached.tolist() == [True, True, False]


def test_native_weights_are_one_for_single_experts_and_learned_for_several():
    assert made()[0].levels[0].native_weights is None
    weights = made(task_experts=4, shared_experts=1)[0].levels[0].native_weights
    assert weights.shape == (K * 4 + 1,)
    assert weights[: K * 4].abs().max() <= 0.5
    assert made(shared_experts=1)[0].levels[0].native_weights is None


@pytest.mark.parametrize(
    "options", [{}, {"task_experts": 2, "shared_experts": 1}, {"norm": "batch", "shared_experts": 2}]
)
@pytest.mark.parametrize("outputs", [("watch",), ("click", "watch"), {"click": 1, "long_view": 1, "watch": 3}])
def test_keeps_the_promises_of_a_head(options, outputs):
    config = AdaTT.Config(**{"levels": ((8,), (6, 4)), "tower": (), **options})
    check_head(AdaTT, config, outputs=outputs, in_features=5)


def test_trains_in_a_whole_model():
    before, after = losses_over_training(AdaTT, AdaTT.Config(levels=((8,), (8,)), tower=(4,)))
    assert (after < before).all()
