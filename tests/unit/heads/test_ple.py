"""PLE equals its equations written out, level by level, and keeps each task's experts to that task."""

from itertools import chain

import pytest
import torch

from tests.unit.heads.reference import layers, mixture, tower
from tests.unit.heads.reference_sets import expert
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.features import Features, FeaturesSpec
from torchrec_mtl.heads.ple import PLE
from torchrec_mtl.testing import check_head
from torchrec_mtl.testing.subject import gradients_of, weighted

OUTPUTS = {"click": 1, "buy": 1, "spend": 2}
B, D = 6, 5


def common(level, x):
    return [layers(level.shared_experts.mlp.linears, i, x) for i in range(level.shared_experts.num_experts)]


def level_written_out(level, shared, xs, *, first):
    own = [
        [expert(level.task_experts, k, i, x) for i in range(level.task_experts.num_experts)] for k, x in enumerate(xs)
    ]
    outs = [
        mixture(level.gates.linear.weight[k], x, common(level, x if first else shared) + own[k])
        for k, x in enumerate(xs)
    ]
    if level.shared_gate is None:
        return None, outs
    return mixture(level.shared_gate.weight.T, shared, [*common(level, shared), *chain.from_iterable(own)]), outs


def written_out(head, shared, xs):
    for i, level in enumerate(head.levels):
        shared, xs = level_written_out(level, shared, xs, first=i == 0)
    return [tower(head.towers, k, x) for k, x in enumerate(xs)]


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize(
    ("levels", "shared_experts", "task_experts"),
    [(((7, 4),), 2, 1), (((4,), (7, 3)), 1, 2), (((4,), (4,), (3,)), 2, 3)],
)
def test_logits_equal_the_equations(levels, shared_experts, task_experts, per_task):
    torch.manual_seed(0)
    config = PLE.Config(levels=levels, shared_experts=shared_experts, task_experts=task_experts, tower=(3,))
    head = PLE(D, OUTPUTS, config)
    shared, *views = (torch.randn(B, D, requires_grad=True) for _ in range(1 + len(OUTPUTS)))
    found = head(Representation(shared, tuple(views) if per_task else None)).logits
    expected = written_out(head, shared, views if per_task else [shared] * len(OUTPUTS))
    expected = [z[:, :width] for z, width in zip(expected, OUTPUTS.values(), strict=True)]
    for task, z in zip(OUTPUTS, expected, strict=True):
        torch.testing.assert_close(found[task].view(B, -1), z)
    leaves = [shared, *views, *head.parameters()]
    mine = gradients_of(weighted(torch.cat([z.view(B, -1) for z in found.values()], dim=1)), leaves)
    theirs = gradients_of(weighted(torch.cat(expected, dim=1)), leaves)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_batch_norm_of_shared_experts_is_over_all_that_they_read():
    torch.manual_seed(0)
    head = PLE(D, OUTPUTS, PLE.Config(levels=((4,), (4,)), norm="batch"))
    shared, *views = (torch.randn(B, D) for _ in range(1 + len(OUTPUTS)))
    valid = torch.tensor([1.0, 1, 0, 1, 1, 0])
    features = Features({}, {}, torch.zeros(B, 0), FeaturesSpec((), (), ()), valid=valid)
    head(Representation(shared, tuple(views), features))
    experts = head.levels[0].shared_experts.mlp
    hidden = torch.cat([x[valid > 0] for x in (*views, shared)]) @ experts.linears[0].weight + experts.linears[0].bias
    torch.testing.assert_close(experts.norms[0].running_mean, 0.1 * hidden.mean(1, keepdim=True))


def reached_experts(levels, task):
    """Return, level by level, whether the task's loss reaches the 2 shared experts, and the experts of each task."""
    torch.manual_seed(0)
    head = PLE(D, OUTPUTS, PLE.Config(levels=levels, shared_experts=2, task_experts=2))
    head(Representation(torch.randn(200, D))).logits[task].sum().backward()
    weights = [(level.shared_experts.mlp.linears[0].weight, level.task_experts.first.weight) for level in head.levels]
    return [[(w.grad.abs().sum((1, 2)) != 0).tolist() for w in level] for level in weights]


def test_the_last_level_keeps_experts_to_their_task():
    (reached,) = reached_experts(((8,),), "buy")
    assert reached == [[True, True], [False, True, False]]


def test_the_level_before_reaches_all_experts_through_the_shared_gate():
    first, last = reached_experts(((8,), (8,)), "buy")
    assert first == [[True, True], [True, True, True]]
    assert last == [[True, True], [False, True, False]]


def test_at_one_level_a_task_reads_its_own_representation_alone():
    head = PLE(D, OUTPUTS, PLE.Config())
    shared = torch.randn(B, D, requires_grad=True)
    views = tuple(torch.randn(B, D, requires_grad=True) for _ in OUTPUTS)
    logit = head(Representation(shared, views)).logits["buy"]
    gradients = torch.autograd.grad(logit.sum(), [shared, *views], materialize_grads=True, allow_unused=True)
    assert [bool((g != 0).any()) for g in gradients] == [False, False, True, False]


@pytest.mark.parametrize("levels", [((8,),), ((8,), (8,))], ids=len)
def test_experts_run_once_where_all_tasks_read_the_same(levels):
    head, seen = PLE(D, OUTPUTS, PLE.Config(levels=levels)), []
    for level in head.levels:
        level.shared_experts.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    head(Representation(torch.randn(B, D)))
    assert seen == [(B, D), (B, 8)][: len(levels)]


def test_gates_sum_to_one():
    head = PLE(D, OUTPUTS, PLE.Config(levels=((4,), (4,)), task_experts=3))
    level, x = head.levels[0], torch.randn(B, D)
    gates = level.gates(x)
    torch.testing.assert_close(gates.sum(-1), torch.ones(len(OUTPUTS), B))
    assert gates.shape[-1] == 2 + 3
    with torch.no_grad():  # experts that all give 1: what a mixture is then, is the sum of its weights
        for m in (*level.shared_experts.mlp.linears, level.task_experts.first):
            m.weight.zero_()
            m.bias.fill_(1.0)
    for mixed in level(x, x):
        torch.testing.assert_close(mixed, torch.ones_like(mixed))


def test_a_whole_model_learns_every_task():
    before, after = losses_over_training(PLE, PLE.Config(levels=((16,), (8,)), tower=(8,)))
    assert (after < before).all()


VARIANTS = [
    PLE.Config(levels=((8,), (6, 4)), norm="batch", tower=()),
    PLE.Config(levels=((8, 4), (6,), (4,)), shared_experts=1, task_experts=2, norm="layer"),
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: c.norm)
def test_options_break_no_promise(config):
    check_head(PLE, config)


@pytest.mark.parametrize("outputs", [("watch",), ("click", "watch")], ids=len)
def test_two_levels_take_fewer_tasks(outputs):
    check_head(PLE, PLE.Config(levels=((8,), (6,))), outputs=outputs)
