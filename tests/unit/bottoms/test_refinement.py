"""Gates equal their equation written out row by row, change nothing at first, and belong to their task alone."""

import pytest
import torch

from tests.unit.bottoms.reference import refined
from tests.unit.bottoms.sequences import randomised
from torchrec_mtl.bottoms.refinement import Refinement
from torchrec_mtl.testing.subject import gradients_of, weighted

K, B = 3, 5
WIDTHS = (3, 4, 4, 4, 1, 1)  # neighbours of one width, and some alone
F, D = len(WIDTHS), sum(WIDTHS)
FORMS = [(g, s) for g in ("field", "bit") for s in ("mean", "flat")]
READS, GIVES = {"mean": F, "flat": D}, {"field": F, "bit": D}
Z = {"a task": (K, B, D), "all": (B, D)}


def build(gates=K, widths=WIDTHS, granularity="field", squeeze="mean", reduction=2):
    torch.manual_seed(0)
    return Refinement(gates, widths, granularity=granularity, squeeze=squeeze, reduction=reduction).double()


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)


def one_by_one(refinement, z, widths=WIDTHS):
    """[K, B, D] for z [K, B, D] or one [B, D] for all."""
    z = z if z.dim() == 3 else z.expand(K, -1, -1)
    return torch.stack(
        [torch.stack([refined(refinement, list(row.split(widths)), k) for row in task]) for k, task in enumerate(z)]
    )


@pytest.mark.parametrize(("granularity", "squeeze"), FORMS)
@pytest.mark.parametrize("shape", Z.values(), ids=Z)
@pytest.mark.parametrize("gates", [1, K])
def test_what_is_refined_and_its_gradient_equal_loops(gates, shape, granularity, squeeze):
    refinement, z = randomised(build(gates, granularity=granularity, squeeze=squeeze)), numbers(*shape)
    found, expected = refinement(z), one_by_one(refinement, z)
    if gates == 1 and len(shape) == 2:
        assert found.shape == (1, B, D)
        expected = expected[:1]
    torch.testing.assert_close(found, expected)
    of = [z, *refinement.parameters()]
    for one, other in zip(*(gradients_of(weighted(o), of) for o in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("widths", [(4,), (1,), (2, 3, 2), (5, 5)], ids=str)
def test_any_row_of_widths_is_cut_as_it_says(widths):
    refinement, z = randomised(build(K, widths)), numbers(K, B, sum(widths))
    torch.testing.assert_close(refinement(z), one_by_one(refinement, z, widths))


@pytest.mark.parametrize(("granularity", "squeeze"), FORMS)
@pytest.mark.parametrize("gates", [1, K])
def test_at_first_it_changes_nothing_bit_by_bit(gates, granularity, squeeze):
    refinement, z = build(gates, granularity=granularity, squeeze=squeeze), numbers(K, B, D)
    assert torch.equal(refinement(z), z)
    last = list(refinement.gate.second.parameters())
    assert all(g.abs().sum() > 0 for g in gradients_of(weighted(refinement(z)), last))  # and can learn


@pytest.mark.parametrize(("granularity", "squeeze"), FORMS)
def test_factors_lie_between_nothing_and_twice(granularity, squeeze):
    refinement = build(granularity=granularity, squeeze=squeeze)
    with torch.no_grad():
        refinement.gate.second.bias[0] = 100.0
        refinement.gate.second.bias[1] = -100.0
    z = numbers(K, B, D)
    torch.testing.assert_close(refinement(z), torch.stack([2 * z[0], 0 * z[1], z[2]]))


@pytest.mark.parametrize(("granularity", "squeeze"), FORMS)
@pytest.mark.parametrize("shape", Z.values(), ids=Z)
def test_a_task_sends_no_gradient_to_anothers_gates(granularity, squeeze, shape):
    refinement, z = randomised(build(granularity=granularity, squeeze=squeeze)), numbers(*shape)
    for k, o in enumerate(refinement(z)):
        for gradient in gradients_of(weighted(o), list(refinement.parameters())):
            assert gradient.flatten(1).abs().sum(1).nonzero().flatten().tolist() == [k]


def test_gates_of_all_tasks_learn_from_each():
    refinement, z = randomised(build(1)), numbers(K, B, D)
    for o in refinement(z):
        assert all(g.abs().sum() > 0 for g in gradients_of(weighted(o), list(refinement.parameters())))


@pytest.mark.parametrize("reduction", [1, 2, 4, 100])
@pytest.mark.parametrize(("granularity", "squeeze"), FORMS)
def test_one_more_task_costs_one_gate(granularity, squeeze, reduction):
    reads, gives = READS[squeeze], GIVES[granularity]
    hidden = max(reads // reduction, 1)
    sizes = [sum(p.numel() for p in build(n, WIDTHS, granularity, squeeze, reduction).parameters()) for n in (K, K + 1)]
    assert sizes[1] - sizes[0] == (reads + 1) * hidden + (hidden + 1) * gives
    assert sizes[0] == K * (sizes[1] - sizes[0])
