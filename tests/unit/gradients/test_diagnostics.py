"""What is logged of the gradients equals numpy on the gradients themselves."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from torchrec_mtl.gradients.diagnostics import summarise

TASKS, STEPS, DIM = ("click", "long_view", "watch"), 7, 9


def make_gradients(num_groups=1, gone=()):
    """Gradients [S, G, K, d]; ``gone``: (step, task) without one."""
    gradients = np.random.default_rng(3).normal(size=(STEPS, num_groups, len(TASKS), DIM))
    for step, task in gone:
        gradients[step, :, task] = 0
    return gradients


def make_weights(num_groups=1):
    return np.random.default_rng(4).uniform(0.5, 2, size=(STEPS, num_groups, len(TASKS)))


def history(gradients, weights):
    for g, w in zip(gradients, weights):
        yield torch.tensor(g @ g.transpose(0, 2, 1)).float(), torch.tensor(w).float()


def by_numpy(gradients, weights, core):
    """Cosines, conflicts, and norms of whole gradients [S, K, G d], step by step."""
    whole = gradients.transpose(0, 2, 1, 3).reshape(STEPS, len(TASKS), -1)
    expected = {f"weight/{t}": weights[:, :, k].mean() for k, t in enumerate(TASKS)}
    pairs = combinations(range(3), 2) if core is None else [(k, core) for k in range(3) if k != core]
    norms = np.linalg.norm(whole, axis=2)
    for a, b in pairs:
        name = TASKS[a] if core is not None else f"{TASKS[a]}-{TASKS[b]}"
        both = [s for s in range(STEPS) if norms[s, a] > 0 and norms[s, b] > 0]
        cosines = [whole[s, a] @ whole[s, b] / norms[s, a] / norms[s, b] for s in both]
        if cosines:
            expected[f"cosine/{name}"] = np.mean(cosines)
            expected[f"conflict/{name}"] = np.mean([c < 0 for c in cosines])
    for k in range(3):
        reference = norms.mean(1) if core is None else norms[:, core]
        ratios = [norms[s, k] / reference[s] for s in range(STEPS) if norms[s, k] > 0 and reference[s] > 0]
        if k != core and ratios:
            expected[f"norm/{TASKS[k]}"] = np.mean(ratios)
    return expected


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("gone", [(), ((0, 0), (2, 0), (2, 1), (5, 2)), tuple((s, 1) for s in range(STEPS))])
@pytest.mark.parametrize("core", [None, 2, 0])
def test_numbers_are_means_over_the_steps_in_which_both_have_a_gradient(core, gone, num_groups):
    gradients, weights = make_gradients(num_groups, gone), make_weights(num_groups)
    found = summarise(history(gradients, weights), TASKS, core)
    assert found == pytest.approx(by_numpy(gradients, weights, core), rel=1e-4, abs=1e-6)


def test_names_with_a_core_and_without():
    given = list(history(make_gradients(), make_weights()))
    weights = [f"weight/{t}" for t in TASKS]
    of_two = [f"{kind}/{t}" for kind in ("cosine", "conflict", "norm") for t in TASKS[:2]]
    assert list(summarise(given, TASKS, core=2)) == [*weights, *of_two]
    pairs = ["click-long_view", "click-watch", "long_view-watch"]
    of_all = [f"{kind}/{pair}" for kind in ("cosine", "conflict") for pair in pairs]
    assert list(summarise(given, TASKS)) == [*weights, *of_all, *(f"norm/{t}" for t in TASKS)]


def test_a_task_that_never_had_a_gradient_has_a_weight_only():
    gone = tuple((s, 2) for s in range(STEPS))
    found = summarise(history(make_gradients(gone=gone), make_weights()), TASKS, core=2)
    assert set(found) == {f"weight/{t}" for t in TASKS}
    assert all(math.isfinite(value) for value in found.values())


def test_a_rule_without_gramian_has_weights_only():
    steps = [(None, torch.tensor([[1.0, 3.0]])), (None, torch.tensor([[2.0, 5.0]]))]
    assert summarise(steps, ["a", "b"]) == {"weight/a": 1.5, "weight/b": 4.0}


def test_no_steps_no_numbers():
    assert summarise([], TASKS) == summarise(iter(()), TASKS, core=2) == {}


def test_tables_are_added_up_before_a_cosine_is_taken():
    # Opposed in one table, alike in a larger one: no conflict of the whole gradients.
    opposed, alike = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([[4.0, 4.0], [4.0, 4.0]])
    found = summarise([(torch.stack([opposed, alike]), torch.ones(2, 2))], ["a", "b"], core=1)
    assert found["conflict/a"] == 0
    assert found["cosine/a"] == pytest.approx(3 / 5)
