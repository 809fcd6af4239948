"""Scales and shifts are those of the hyper-network written out pair by pair, and an embedding reaches its own alone."""

import pytest
import torch

from tests.unit.bottoms.reference import norms_of
from tests.unit.bottoms.sequences import randomised
from torchrec_mtl.bottoms.conditions import FixedNorms, HyperNetwork, PlainNorms
from torchrec_mtl.testing.subject import gradients_of, weighted

K, N, D = 3, 4, 5
BEHAVIORS = ("click", "buy", "click", "view")
KNOWN = {"both": 2 + 3, "task": 2, "behavior": 3}


def build(condition="both", behaviors=BEHAVIORS, tasks=K, hidden=(6,)):
    return HyperNetwork(tasks, behaviors, N, D, condition=condition, task_dim=2, behavior_dim=3, hidden=hidden)


@pytest.mark.parametrize("hidden", [(6,), (6, 7)], ids=str)
@pytest.mark.parametrize("condition", KNOWN)
def test_scales_and_shifts_equal_the_equation(condition, hidden):
    norms = randomised(build(condition, hidden=hidden))
    scale, shift = norms()
    assert scale.shape == shift.shape == (N, len(BEHAVIORS), K, D)
    for j in range(len(BEHAVIORS)):
        for k in range(K):
            for i, (gamma, beta) in enumerate(norms_of(norms, k, j)):
                torch.testing.assert_close(scale[i, j, k], gamma)
                torch.testing.assert_close(shift[i, j, k], beta)


@pytest.mark.parametrize("condition", KNOWN)
def test_at_first_all_norms_are_plain(condition):
    norms = build(condition)
    scale, shift = norms()
    assert torch.equal(scale, torch.ones_like(scale))
    assert torch.equal(shift, torch.zeros_like(shift))
    # The network can leave this point: its last layer learns from the first step, the rest from the second.
    last = norms.mlp[-1]
    for gradient in gradients_of(weighted(scale) + weighted(shift.exp()), [last.weight, last.bias]):
        assert gradient.abs().sum() > 0


def changed(norms, embeddings, row):
    """What differs, [J, K], once one embedding is another."""
    before = torch.cat([*norms()], dim=-1)
    with torch.no_grad():
        embeddings[row] += 1
    return (torch.cat([*norms()], dim=-1) != before).any(-1).any(0)


@pytest.mark.parametrize("k", range(K))
def test_a_tasks_embedding_reaches_that_task_alone_bit_by_bit(k):
    norms = randomised(build())
    expected = torch.zeros(len(BEHAVIORS), K, dtype=torch.bool)
    expected[:, k] = True
    assert torch.equal(changed(norms, norms.tasks, k), expected)


@pytest.mark.parametrize(("kind", "sequences"), [(0, [0, 2]), (1, [1]), (2, [3])])
def test_a_behaviours_embedding_reaches_the_sequences_of_that_type_alone_bit_by_bit(kind, sequences):
    norms = randomised(build())
    expected = torch.zeros(len(BEHAVIORS), K, dtype=torch.bool)
    expected[sequences] = True
    assert torch.equal(changed(norms, norms.behaviors, kind), expected)


def test_sequences_of_one_type_have_the_same_norms():
    for values in randomised(build())():
        assert torch.equal(values[:, 0], values[:, 2])
        assert not torch.equal(values[:, 0], values[:, 1])


def test_a_network_that_knows_the_task_alone_treats_all_sequences_alike():
    norms = randomised(build("task"))
    assert norms.behaviors is None
    for values in norms():
        assert torch.equal(values, values[:, :1].expand_as(values))
        assert not torch.equal(values[:, :, 0], values[:, :, 1])


def test_a_network_that_knows_the_behaviour_alone_treats_all_tasks_alike():
    norms = randomised(build("behavior"))
    assert norms.tasks is None
    for values in norms():
        assert torch.equal(values, values[:, :, :1].expand_as(values))
        assert not torch.equal(values[:, 0], values[:, 1])


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("condition", KNOWN)
def test_it_has_the_weights_that_the_equation_says(condition):
    mlp = (KNOWN[condition] + 1) * 6 + (6 + 1) * 2 * N * D
    embeddings = (K * 2 if condition != "behavior" else 0) + (3 * 3 if condition != "task" else 0)
    assert size(build(condition)) == mlp + embeddings


def test_one_more_task_or_type_costs_its_embedding():
    assert size(build(tasks=K + 1)) - size(build()) == 2
    assert size(build(behaviors=(*BEHAVIORS, "like"))) - size(build()) == 3
    assert size(build(behaviors=(*BEHAVIORS, "view"))) - size(build()) == 0


def test_types_of_sequences_are_no_state():
    assert set(build().state_dict()) == {name for name, _ in build().named_parameters()}


def test_plain_norms_are_one_pair_a_norm_for_all_sequences():
    norms = PlainNorms(4, N, D)
    scale, shift = norms()
    assert torch.equal(scale, torch.ones(N, 4, 1, D))
    assert torch.equal(shift, torch.zeros(N, 4, 1, D))
    assert size(norms) == 2 * N * D
    randomised(norms)
    for values, weight in zip(norms(), (norms.weight, norms.bias)):
        assert torch.equal(values, weight.expand(N, 4, 1, D))


def test_fixed_norms_keep_what_they_were_given():
    norms = randomised(build())
    fixed = FixedNorms(*norms())
    before = [values.clone() for values in norms()]
    with torch.no_grad():
        norms.tasks.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(fixed(), before, strict=True))
    assert not any(values.requires_grad for values in fixed())
    assert list(fixed.parameters()) == []
