"""Rules on Gramians equal their papers' algorithms on the gradients themselves."""

import itertools

import pytest
import torch

from torchrec_mtl.gradients.gramians import free_of_rounding, min_norm_point
from torchrec_mtl.registry import resolve

DIM = 12
NAMES = ("pcgrad", "gradvac", "cagrad", "mgda", "imtl", "aligned", "upgrad")


def gradients_of(seed, num_tasks=3, spread=0.5):
    """Of different lengths, some opposed."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_tasks, DIM, generator=g, dtype=torch.float64)
    rows[0] += torch.randn(DIM, generator=g, dtype=torch.float64) - rows[1] * (seed % 3)
    return rows * 10.0 ** (spread * torch.randn(num_tasks, 1, generator=g, dtype=torch.float64))


def rule_of(name, num_tasks=3, **options):
    rule_class = resolve("rule", name)
    return rule_class(rule_class.Config(**options), [f"t{k}" for k in range(num_tasks)])


def ask(rule, rows, seed=0):
    """Float64 in, so that only the rule is compared."""
    torch.manual_seed(seed)
    return rule.weights((rows @ rows.T).unsqueeze(0), torch.ones(len(rows)))[0]


def pcgrad(rows):
    result = torch.zeros(DIM, dtype=torch.float64)
    for i, g in enumerate(rows):
        for j in torch.randperm(len(rows)).tolist():
            if j != i and g @ rows[j] < 0:
                g = g - (g @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        result = result + g
    return result


@pytest.mark.parametrize("seed", range(6))
def test_pcgrad_equals_the_algorithm_with_the_same_order(seed):
    rows = gradients_of(seed, 4)
    torch.manual_seed(seed)
    expected = pcgrad(rows)
    torch.testing.assert_close(ask(rule_of("pcgrad", 4), rows, seed) @ rows, expected, rtol=1e-9, atol=1e-9)


def gradvac(rows, target, beta):
    result, k = torch.zeros(DIM, dtype=torch.float64), len(rows)
    for i, g in enumerate(rows):
        others = [j for j in range(k) if j != i]
        for j in (others[p] for p in torch.randperm(k - 1).tolist()):
            phi, hat = torch.cosine_similarity(g, rows[j], dim=0), target[i, j].clone()
            if phi < hat:
                up = hat * (1 - phi**2).sqrt() - phi * (1 - hat**2).sqrt()
                g = g + g.norm() * up / (rows[j].norm() * (1 - hat**2).sqrt()) * rows[j]
            target[i, j] = (1 - beta) * hat + beta * phi
        result = result + g
    return result


def test_gradvac_equals_the_algorithm_over_several_steps():
    rule, target = rule_of("gradvac", beta=0.3), torch.zeros(3, 3, dtype=torch.float64)
    for seed in range(8):
        rows = gradients_of(seed)
        torch.manual_seed(seed)
        expected = gradvac(rows, target, 0.3)
        torch.testing.assert_close(ask(rule, rows, seed) @ rows, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(rule.target, target, rtol=1e-7, atol=1e-7)


def test_gradvac_keeps_the_targets_of_tasks_without_gradient():
    rule, rows = rule_of("gradvac"), gradients_of(0)
    ask(rule, rows)
    before = rule.target.clone()
    rows[2] = 0
    ask(rule, rows)
    assert torch.equal(rule.target[2], before[2])
    assert torch.equal(rule.target[:, 2], before[:, 2])
    assert not torch.equal(rule.target[0, 1], before[0, 1])


def test_gradvac_is_not_thrown_by_gradients_that_always_agreed():
    rule = rule_of("gradvac", 2)
    same = torch.ones(2, DIM, dtype=torch.float64)
    for _ in range(100):
        ask(rule, same)
    opposed = same * torch.tensor([[1.0], [-1.0]])
    assert ask(rule, opposed).abs().max() < 50


def simplex(num_tasks, steps):
    """All points of a grid over the simplex."""
    points = [p for p in itertools.product(range(steps + 1), repeat=num_tasks - 1) if sum(p) <= steps]
    free = torch.tensor(points, dtype=torch.float64) / steps
    return torch.cat([free, 1 - free.sum(1, keepdim=True)], dim=1)


@pytest.mark.parametrize(("num_tasks", "steps"), [(2, 4000), (3, 150)])
@pytest.mark.parametrize("c", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_cagrad_is_no_worse_than_a_grid(seed, c, num_tasks, steps):
    rows = gradients_of(seed, num_tasks)
    mean, grid = rows.mean(0), simplex(num_tasks, steps)

    def objective(w):
        return w @ rows @ mean + c * mean.norm() * (w @ rows).norm(dim=-1)

    weights = ask(rule_of("cagrad", num_tasks, c=c, rescale=False), rows) / num_tasks - 1 / num_tasks
    ours, best = weights / weights.sum(), objective(grid).min()
    assert weights.min() > -1e-9
    assert objective(ours) <= best + 1e-9 * rows.norm() ** 2
    if num_tasks == 2:
        assert (ours - grid[objective(grid).argmin()]).abs().max() < 2e-3


def test_cagrad_helps_the_worst_off_task_most_of_all_directions_in_its_ball():
    rows, c = gradients_of(1), 0.5
    mean = rows.mean(0)
    d = ask(rule_of("cagrad", c=c, rescale=False), rows) @ rows / 3
    torch.testing.assert_close((d - mean).norm(), c * mean.norm())
    around = torch.nn.functional.normalize(torch.randn(20_000, DIM, dtype=torch.float64), dim=1) * c * mean.norm()
    assert (rows @ d).min() >= ((mean + around) @ rows.T).min(1).values.max()


def test_cagrad_rescales_as_the_authors_do():
    rows = gradients_of(1)
    plain = ask(rule_of("cagrad", c=0.5, rescale=False), rows)
    torch.testing.assert_close(ask(rule_of("cagrad", c=0.5), rows), plain / 1.25)


def test_cagrad_takes_the_mean_where_no_direction_helps_all():
    rows = torch.eye(DIM, dtype=torch.float64)[:1] * torch.tensor([[1.0], [-2.0]])
    torch.testing.assert_close(
        ask(rule_of("cagrad", 2, c=2.0, rescale=False), rows), torch.ones(2, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(6))
def test_mgda_equals_the_closed_form_for_two_tasks(seed):
    a, b = rows = gradients_of(seed, 2)
    share = ((b - a) @ b / (a - b).square().sum()).clamp(0, 1)
    torch.testing.assert_close(ask(rule_of("mgda", 2), rows), 2 * torch.stack([share, 1 - share]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_mgda_is_the_shortest_convex_combination(seed, spread):
    rows = gradients_of(seed, 5, spread)
    weights = ask(rule_of("mgda", 5), rows) / 5
    shortest = weights @ rows
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    # First-order condition: no point of the hull lies nearer to 0 in any direction.
    assert (rows @ shortest).min() >= shortest @ shortest - 1e-9 * rows.norm() ** 2


@pytest.mark.parametrize("seed", range(6))
def test_imtl_projects_equally_onto_every_task(seed):
    rows = gradients_of(seed, 4)
    weights = ask(rule_of("imtl", 4), rows)
    onto = torch.nn.functional.normalize(rows, dim=1) @ (weights @ rows)
    torch.testing.assert_close(onto, onto[:1].expand(4), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(weights.sum(), torch.tensor(4.0, dtype=torch.float64))


@pytest.mark.parametrize(("scale_mode", "of"), [("min", torch.amin), ("rmse", lambda s: s.square().mean().sqrt())])
def test_aligned_sums_orthogonal_gradients_of_one_length(scale_mode, of):
    rows = gradients_of(2)
    u, s, v = torch.linalg.svd(rows, full_matrices=False)
    expected = (of(s) * u @ v).sum(0)
    torch.testing.assert_close(ask(rule_of("aligned", scale_mode=scale_mode), rows) @ rows, expected)


def projection(rows, i):
    """Onto the dual cone, by trying all sets of coordinates at their bound."""
    gramian, k = rows @ rows.T, len(rows)
    found = []
    for count in range(k + 1):
        for bound in itertools.combinations(range(k), count):
            free = [j for j in range(k) if j not in bound]
            w = torch.nn.functional.one_hot(torch.tensor(i), k).double()
            if free:
                w[free] = -torch.linalg.solve(gramian[free][:, free], gramian[free][:, list(bound)] @ w[list(bound)])
            if (w - torch.nn.functional.one_hot(torch.tensor(i), k)).min() >= -1e-12:
                found.append(w @ rows)
    return min(found, key=torch.Tensor.norm)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_upgrad_sums_projections_and_harms_no_task(seed, spread):
    rows = gradients_of(seed, 4, spread)
    found = ask(rule_of("upgrad", 4), rows) @ rows
    torch.testing.assert_close(found, sum(projection(rows, i) for i in range(4)), rtol=1e-6, atol=1e-9)
    assert (rows @ found / rows.norm(dim=1)).min() >= -1e-9 * rows.norm()


@pytest.mark.parametrize("name", ["pcgrad", "gradvac", "upgrad"])
def test_gradients_that_agree_are_summed(name):
    rows = gradients_of(0).abs()
    torch.testing.assert_close(ask(rule_of(name), rows), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_equal_gradients_are_combined_at_the_scale_of_the_sum(name):
    rows = gradients_of(0)[:1].expand(3, DIM)
    options = {"rescale": False} if name == "cagrad" else {}
    expected = 3 * rows[0] * (1.5 if name == "cagrad" else 1.0)
    torch.testing.assert_close(ask(rule_of(name, **options), rows) @ rows, expected)


@pytest.mark.parametrize("gone", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_a_task_without_gradient_leaves_the_others_to_themselves(name, gone):
    rows, others = gradients_of(4), [k for k in range(3) if k != gone]
    alone = ask(rule_of(name, 2), rows[others])
    rows[gone] = 0
    weights = ask(rule_of(name), rows)
    assert torch.equal(weights[others], alone)
    assert weights[gone] == 1


@pytest.mark.parametrize("name", ["imtl", "aligned"])
def test_rounding_of_dependent_gradients_is_not_amplified(name):
    """The Gramian is a float32 sum; inverted in float64, what it is off by would decide."""
    direction = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([direction, 3 * direction, direction.flip(0)])
    gramian = (rows @ rows.T).unsqueeze(0)
    expected = ask(rule_of(name), torch.eye(3, DIM, dtype=torch.float64)[[0, 0, 1]] * torch.tensor([[1.0], [3], [1]]))
    found = rule_of(name).weights(gramian, torch.ones(3))[0].double()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_a_gramian_without_rounding_stays_as_it_is():
    rows = gradients_of(0, 4, spread=2.0)
    torch.testing.assert_close(free_of_rounding(rows @ rows.T), rows @ rows.T, rtol=1e-9, atol=0.0)


def test_min_norm_point_finds_zero_inside_the_hull():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(min_norm_point(rows @ rows.T), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_are_not_finite_are_named(name, value):
    gramian = (gradients_of(0) @ gradients_of(0).T).unsqueeze(0)
    gramian[0, 1, :] = gramian[0, :, 1] = value
    with pytest.raises(ValueError, match=r"the gradients of 't1' are not finite.*optim\.dense\.clip_norm"):
        rule_of(name).weights(gramian, torch.ones(3))


def test_products_alone_that_are_not_finite_name_every_task():
    gramian = (gradients_of(0) @ gradients_of(0).T).unsqueeze(0)
    gramian[0, 0, 1] = torch.inf
    with pytest.raises(ValueError, match="the gradients of 't0', 't1', 't2' are not finite"):
        rule_of("mgda").weights(gramian, torch.ones(3))


def test_a_gramian_that_is_not_finite_moves_no_target():
    rule, rows = rule_of("gradvac"), gradients_of(0)
    ask(rule, rows)
    before = rule.target.clone()
    with pytest.raises(ValueError, match="not finite"):
        ask(rule, rows * torch.inf)
    assert torch.equal(rule.target, before)
    assert before.any()
