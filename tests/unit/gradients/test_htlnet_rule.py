"""HTLNet's rule on Gramians equals the paper's algorithm on the gradients themselves."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.gradients.boundary import Boundary
from torchrec_mtl.gradients.htlnet import HTLNetRule
from torchrec_mtl.gradients.sum import SumRule
from torchrec_mtl.testing import run_ranks

DIM = 12


def adjusted(gradients, core, c) -> list[torch.Tensor]:
    """Algorithm 1 on dense gradients: what each task contributes."""
    g_core, result = gradients[core], []
    for t, g in enumerate(gradients):
        raw = g.norm()
        if t != core and raw > 0 and g_core.norm() > 0:
            if g @ g_core < 0:
                g = g - c.alpha * (g @ g_core) / (g_core @ g_core) * g_core
            norm = raw if c.norm_source == "raw" else g.norm()
            w = (g_core.norm() / norm).clamp(1 / c.clip if c.clip_two_sided else 0, c.clip)
            g = c.gamma * w * g + (1 - c.gamma) * g
        result.append(g)
    return result


def combined(gradients, c) -> torch.Tensor:
    """The sum of all contributions, from the Gramian alone."""
    stack = torch.stack(gradients)
    weights = rule(len(gradients), c).weights((stack @ stack.T).unsqueeze(0), torch.zeros(len(gradients)))
    return (weights @ stack).squeeze(0)


def rule(num_tasks, c) -> HTLNetRule:
    return HTLNetRule(c, [str(t) for t in range(num_tasks)])


def options(core, **others):
    return HTLNetRule.Config(core=str(core), **others)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(cosine, task_norm=3.0, core_norm=2.0):
    """Return a task's and the core's gradient at an angle."""
    g = torch.zeros(2, DIM, dtype=torch.float64)
    g[0, 0], g[0, 1] = task_norm * cosine, task_norm * math.sqrt(1 - cosine**2)
    g[1, 0] = core_norm
    return list(g)


@given(
    seed=st.integers(0, 10_000),
    num_tasks=st.integers(2, 5),
    place=st.integers(0, 4),
    alpha=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
    gamma=st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1),
    clip=st.sampled_from([1.0, 2.0, 10.0, 1e6]),
    two_sided=st.booleans(),
    source=st.sampled_from(["projected", "raw"]),
    scales=st.lists(st.sampled_from([0.0, 1e-4, 0.1, 1.0, 10.0, 1e4]), min_size=5, max_size=5),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_combined_gradient_equals_the_dense_algorithm(
    seed, num_tasks, place, alpha, gamma, clip, two_sided, source, scales
):
    core = place % num_tasks
    c = options(core, alpha=alpha, gamma=gamma, clip=clip, clip_two_sided=two_sided, norm_source=source)
    gradients = [s * g for s, g in zip(scales, normal(num_tasks, DIM, seed=seed))]
    expected = torch.stack(adjusted(gradients, core, c)).sum(0)
    scale = max(1e-12, expected.norm().item(), max(g.norm().item() for g in gradients))
    torch.testing.assert_close(combined(gradients, c) / scale, expected / scale, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("cosine", [-0.9, -0.2, 0.0, 0.6])
def test_direction_step_leaves_a_part_of_a_conflict_and_nothing_else(alpha, cosine):
    task, core = pair(cosine)
    moved = combined([task, core], options(1, alpha=alpha, gamma=0.0)) - core
    factor = 1 - alpha if cosine < 0 else 1.0
    assert (moved @ core).item() == pytest.approx(factor * (task @ core).item(), abs=1e-12)
    if cosine >= 0:
        assert torch.equal(moved, task)


@pytest.mark.parametrize("ratio", [0.001, 0.05, 0.5, 3.0, 40.0])
@pytest.mark.parametrize(("gamma", "clip"), [(0.1, 10.0), (1.0, 2.0)])
@pytest.mark.parametrize("two_sided", [True, False])
def test_magnitude_step_scales_by_the_clipped_ratio_of_norms(ratio, gamma, clip, two_sided):
    task, core = pair(0.3, task_norm=1.0, core_norm=ratio)
    moved = combined([task, core], options(1, gamma=gamma, clip=clip, clip_two_sided=two_sided)) - core
    low = 1 / clip if two_sided else 0.0
    factor = moved.norm() / task.norm()
    assert factor.item() == pytest.approx(gamma * min(max(ratio, low), clip) + 1 - gamma)
    if gamma == 0.1:
        assert 0.90 <= factor <= 1.90 + 1e-9  # 0.91 where the clip is two-sided


@given(task=st.floats(1e-3, 1e3), core=st.floats(1e-3, 1e3), cosine=st.floats(-0.95, 1))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_with_default_options_no_task_grows_or_shrinks_beyond_the_clip(task, core, cosine):
    gradients = pair(cosine, task, core)
    projected = adjusted(gradients, 1, options(1, gamma=0.0))[0].norm()
    factor = (combined(gradients, options(1)) - gradients[1]).norm() / projected
    assert 0.91 - 1e-6 <= factor <= 1.90 + 1e-6


def test_raw_norms_are_those_before_the_direction_step():
    task, core = pair(-0.8, task_norm=2.0, core_norm=1.0)
    moved = combined([task, core], options(1, alpha=1.0, gamma=1.0, norm_source="raw")) - core
    assert moved.norm().item() == pytest.approx(0.6 * 2.0 * 0.5)  # the projection left 0.6 of 2, the ratio is 1 / 2
    moved = combined([task, core], options(1, alpha=1.0, gamma=1.0)) - core
    assert moved.norm().item() == pytest.approx(1.0)


def test_full_strength_without_clip_gives_every_task_the_norm_of_the_core():
    gradients = list(normal(4, DIM) * torch.tensor([[0.01], [5.0], [100.0], [1.0]]).double())
    c = options(3, alpha=1.0, gamma=1.0, clip=1e9)
    for t, moved in enumerate(adjusted(gradients, 3, c)[:3]):
        alone = combined([gradients[t], gradients[3]], options(1, alpha=1.0, gamma=1.0, clip=1e9)) - gradients[3]
        assert alone.norm().item() == pytest.approx(gradients[3].norm().item())
        torch.testing.assert_close(alone, moved)


def test_without_conflict_and_magnitude_step_every_task_weighs_one():
    gramian = torch.tensor([[[2.0, -9.0, 0.5], [-9.0, 50.0, 0.0], [0.5, 0.0, 1.0]]])
    weights = rule(3, options(2, gamma=0.0)).weights(gramian, torch.zeros(3))
    assert torch.equal(weights, torch.ones(1, 3))


def test_without_conflict_and_magnitude_step_a_backward_is_the_plain_one():
    def gradient(boundary):
        table = torch.arange(12.0).view(4, 3).requires_grad_()
        a, b = (table, table) if boundary is None else (v[0] for v in boundary.fan_out([table], 2))
        (a.sigmoid().sum() + (b * 0.3).exp().sum()).backward()
        return table.grad

    assert torch.equal(gradient(Boundary(rule(2, options(1, gamma=0.0)))), gradient(None))


def test_the_core_is_never_changed():
    gradients = list(normal(4, DIM))
    c = options(1, alpha=1.0, gamma=0.7)
    others = [g for t, g in enumerate(adjusted(gradients, 1, c)) if t != 1]
    torch.testing.assert_close(combined(gradients, c) - sum(others), gradients[1])


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_direction_step_is_relative_to_the_task_and_blind_to_the_length_of_the_core(scale):
    task, core = pair(-0.6)
    c = options(1, alpha=0.5, gamma=0.0)
    moved = combined([task, core], c) - core
    torch.testing.assert_close(combined([scale * task, core], c) - core, scale * moved)
    torch.testing.assert_close(combined([task, scale * core], c) - scale * core, moved)


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 1), (2,), (0, 1, 2)])
def test_without_its_gradient_a_task_or_the_core_is_left_alone(gone):
    gradients = [g * (t not in gone) for t, g in enumerate(normal(3, DIM, seed=5))]
    c = options(2, alpha=1.0, gamma=1.0)
    found = combined(gradients, c)
    torch.testing.assert_close(found, torch.stack(adjusted(gradients, 2, c)).sum(0))
    if 2 in gone:
        torch.testing.assert_close(found, torch.stack(gradients).sum(0))


def test_a_gradient_opposed_to_the_core_vanishes_instead_of_being_raised_from_rounding():
    task = normal(1, 1000).squeeze(0).float()
    gradients = [-3 * task, task]
    c = options(1, alpha=1.0, gamma=1.0, clip=1e9)
    torch.testing.assert_close(combined(gradients, c), task, rtol=1e-4, atol=1e-4)


def test_groups_of_tables_are_adjusted_apart():
    x = normal(3, 2, DIM)
    gramians = x @ x.transpose(1, 2)
    r = rule(2, options(1))
    each = torch.cat([r.weights(g.unsqueeze(0), torch.zeros(2)) for g in gramians])
    assert torch.equal(r.weights(gramians, torch.zeros(2)), each)


# Moving averages of the norms.


def with_averages(steps, core, c):
    """Algorithm 1 with moving averages in Eq. 17, on dense gradients: the combined gradient of each step."""
    means, result = {}, []
    for gradients in steps:
        g_core, moved = gradients[core], []
        for t, g in enumerate(gradients):
            conflict = t != core and g @ g_core < 0
            moved.append(g - c.alpha * (g @ g_core) / (g_core @ g_core) * g_core if conflict else g)
            if g.norm() > 0:
                norm = g.norm() if c.norm_source == "raw" else moved[t].norm()
                means[t] = c.ema * means.get(t, norm) + (1 - c.ema) * norm
        for t, g in enumerate(moved):
            if t != core and g.norm() > 0 and g_core.norm() > 0:
                moved[t] = (c.gamma * (means[core] / means[t]).clamp(1 / c.clip, c.clip) + 1 - c.gamma) * g
        result.append(sum(moved))
    return result


def history(num_tasks=3, num_steps=20):
    """Gradients of steps; norms wander, and now and then a task, or the core, has none."""
    g = torch.Generator().manual_seed(7)
    steps = normal(num_steps, num_tasks, DIM, seed=4) * torch.rand(num_steps, num_tasks, 1, generator=g) * 10
    gone = torch.rand(num_steps, num_tasks, 1, generator=g) < 0.2
    gone[0, 0] = gone[3, num_tasks - 1] = True  # a first gradient that comes late; a core's that is missing
    return [list(step) for step in steps.masked_fill(gone, 0.0)]


def combined_by(r, gradients):
    stack = torch.stack(gradients)
    return (r.weights((stack @ stack.T).unsqueeze(0), torch.zeros(len(gradients))) @ stack).squeeze(0)


@pytest.mark.parametrize("source", ["projected", "raw"])
@pytest.mark.parametrize(("ema", "gamma", "clip"), [(0.9, 1.0, 1e6), (0.5, 0.4, 2.0)])
def test_moving_averages_stand_for_the_norms(source, ema, gamma, clip):
    c = options(2, ema=ema, gamma=gamma, clip=clip, norm_source=source)
    r, steps = rule(3, c), history()
    for step, (gradients, expected) in enumerate(zip(steps, with_averages(steps, 2, c))):
        torch.testing.assert_close(combined_by(r, gradients), expected, rtol=1e-5, atol=1e-5, msg=f"step {step}")
    plain = rule(3, options(2, gamma=gamma, clip=clip, norm_source=source))
    assert not torch.allclose(combined_by(plain, steps[-1]), combined_by(r, steps[-1]), rtol=1e-2)


def test_the_first_gradient_starts_an_average_and_none_leaves_it():
    r = rule(2, options(1, alpha=0.0, ema=0.9))
    zero = torch.zeros(DIM, dtype=torch.float64)
    task, core = pair(0.5, task_norm=3.0, core_norm=2.0)
    combined_by(r, [zero, core])
    assert r.norms.tolist() == [[0.0, pytest.approx(2.0)]]
    combined_by(r, [task, 2 * core])
    assert r.norms.tolist() == [[pytest.approx(3.0), pytest.approx(2.2)]]
    combined_by(r, [zero, zero])
    assert r.norms.tolist() == [[pytest.approx(3.0), pytest.approx(2.2)]]


def test_averages_resume_bit_by_bit():
    c, steps = options(2, ema=0.9, gamma=0.5), history()
    whole, first = rule(3, c), rule(3, c)
    expected = [combined_by(whole, g) for g in steps]
    for g in steps[:9]:
        combined_by(first, g)
    resumed = rule(3, c)
    assert list(first.state_dict()) == ["norms"]
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(combined_by(resumed, g), e) for g, e in zip(steps[9:], expected[9:]))


def test_averages_are_kept_for_each_group_of_tables():
    x = [normal(2, 3, DIM, seed=seed) for seed in range(5)]
    c = options(2, ema=0.7, gamma=1.0)
    both, apart = HTLNetRule(c, "012", num_groups=2), [rule(3, c), rule(3, c)]
    for grams in (y @ y.transpose(1, 2) for y in x):
        each = torch.cat([r.weights(g.unsqueeze(0), torch.zeros(3)) for r, g in zip(apart, grams)])
        assert torch.equal(both.weights(grams, torch.zeros(3)), each)


def test_without_averages_there_is_no_state():
    assert not rule(3, options(2)).state_dict()
    with pytest.raises(ValueError, match="below 1"):
        options(2, ema=1.0)


# Ranks, and configs that cannot work.


def decide(ema):
    """Runs in a rank, on its rows of a global batch: Gramians and weights of some steps."""
    boundary, ranks = Boundary(rule(3, options(2, gamma=0.5, ema=ema))), world_size()
    for step in range(8):
        # Data parallel averages over ranks, so that each rank's gradients are `ranks` times its part.
        whole = normal(3, 8, 4, seed=step).float()
        mine = ranks * whole[:, rank() * 8 // ranks : (rank() + 1) * 8 // ranks]
        boundary.combine([[g] for g in mine])
    return [torch.cat(values) for values in zip(*boundary.history)]


@pytest.mark.distributed
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_two_ranks_take_the_branches_and_weights_of_one(ema):
    ((gramians, weights),) = run_ranks(decide, 1, ema)
    for found_gramians, found in run_ranks(decide, 2, ema):
        assert torch.equal(found_gramians[:, 2] < 0, gramians[:, 2] < 0)
        torch.testing.assert_close(found, weights)
    assert (gramians[:, 2] < 0).any()


def test_a_core_alone_is_a_plain_regressor():
    assert rule(1, options(0, gamma=1.0)).weights(torch.tensor([[[4.0]]]), torch.zeros(1)).tolist() == [[1.0]]


def task(name, kind):
    return TaskConfig(name=name, kind=kind, label=name, loss=PluginConfig(type="mse"))


@pytest.mark.parametrize(
    ("core", "kinds", "others", "expected"),
    [
        ("watch", {"click": "binary", "watch": "regression"}, {}, None),
        ("wtch", {"click": "binary", "watch": "regression"}, {}, "Did you mean 'watch'?"),
        ("click", {"click": "binary", "watch": "regression"}, {}, "is a binary task"),
        ("watch", {"watch": "regression"}, {}, "two tasks or more"),
        ("watch", {"click": "binary", "watch": "regression"}, {"alpha": 0, "gamma": 0}, "does nothing"),
    ],
)
def test_config_says_for_which_tasks_the_rule_cannot_work(core, kinds, others, expected):
    found = HTLNetRule.Config(core=core, **others).problems([task(n, k) for n, k in kinds.items()])
    assert (expected is None and found == []) or expected in found[0]


def test_sum_weighs_every_task_alike():
    assert torch.equal(SumRule(SumRule.Config(), ["a", "b"]).weights(None, torch.tensor([3.0, 4.0])), torch.ones(2))
