"""DMMP's teacher equals its networks written out, and keeps experts to their tasks."""

import pytest
import torch

from tests.unit.heads.reference import layers, mixture, tower
from tests.unit.heads.reference_sets import expert
from tests.unit.heads.retrieval_head import THREE, TWO, B, D, inputs, labels_and_weights, made
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.testing.subject import gradients_of, weighted

KINDS = ("cgc", "mmoe", "shared_bottom")
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def mixed(body, kind, k, x):
    """What task k's tower reads, from loops over experts."""
    if kind == "shared_bottom":
        for m in body.mlp.linears:
            x = torch.relu(x @ m.weight.T + m.bias)
        return x
    shared = body.shared_experts if kind == "cgc" else body.experts
    values = [layers(shared.mlp.linears, i, x) for i in range(shared.num_experts)]
    if kind == "cgc":
        values += [expert(body.task_experts, k, i, x) for i in range(body.task_experts.num_experts)]
    return mixture(body.gates.linear.weight[k], x, values)


def written_out(teacher, kind, xs):
    return torch.stack([tower(teacher.towers, k, mixed(teacher.body, kind, k, x))[:, 0] for k, x in enumerate(xs)])


@pytest.mark.parametrize("form", ["one for all", "a tuple", "one tensor"])
@pytest.mark.parametrize("tasks", [TWO, THREE], ids=len)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_networks(kind, tasks, form):
    head = made(tasks, teacher=kind, **({} if kind == "shared_bottom" else {"shared_experts": 2, "task_experts": 3}))
    given = inputs(views=0 if form == "one for all" else len(tasks))
    views = given.per_task or [given.shared] * len(tasks)
    stacked = Representation(given.shared, torch.stack(list(views)), given.features)
    found = head.teacher(stacked if form == "one tensor" else given)
    expected = written_out(head.teacher, kind, views)
    torch.testing.assert_close(found, expected, **CLOSE)
    leaves = [*{id(x): x for x in (given.shared, *views)}.values(), *head.teacher.parameters()]
    for one, other in zip(*(gradients_of(weighted(z), leaves) for z in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tasks", [("click",), TWO, THREE], ids=len)
@pytest.mark.parametrize("kind", KINDS)
def test_what_it_predicts_are_products_of_the_conditionals(kind, tasks):
    head, given = made(tasks, teacher=kind), inputs()
    out = head(given)
    conditional = torch.sigmoid(written_out(head.teacher, kind, [given.shared] * len(tasks)))
    found = torch.stack([out.predictions[f"{task}_teacher"] for task in tasks])
    for k in range(len(tasks)):
        torch.testing.assert_close(found[k], conditional[: k + 1].prod(0), **CLOSE)
        assert k == 0 or (found[k] < conditional[: k + 1]).all()
    assert (found[1:] < found[:-1]).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cgc", "mmoe"])
def test_weights_of_its_gates_sum_to_one(kind):
    body = made(THREE, teacher=kind).teacher.body
    experts = (
        [body.shared_experts.mlp.linears, [body.task_experts.first], body.task_experts.rest]
        if kind == "cgc"
        else [body.experts.mlp.linears]
    )
    for m in (m for some in experts for m in some):  # experts that all give 1: a mixture is the sum of its weights
        m.weight.zero_()
        m.bias.fill_(1.0)
    x = inputs().shared
    _, found = body(x, x, None)
    torch.testing.assert_close(found, torch.ones_like(found), **CLOSE)
    assert found.shape == (3, B, 9)


@pytest.mark.parametrize(("options", "numbers"), [({}, (3, 3)), ({"shared_experts": 1, "task_experts": 2}, (1, 2))])
def test_options_are_numbers_of_experts(options, numbers):
    shared, own = numbers
    cgc, mmoe = (made(THREE, teacher=kind, **options).teacher.body for kind in ("cgc", "mmoe"))
    assert (cgc.shared_experts.num_experts, cgc.task_experts.num_experts) == numbers
    assert cgc.task_experts.first.weight.shape == (3, D, 12 * own)
    assert cgc.gates.linear.weight.shape == (3, D, shared + own)
    assert mmoe.experts.num_experts == mmoe.gates.linear.weight.shape[2] == shared + 3 * own


@pytest.mark.parametrize("tasks", [TWO, THREE], ids=len)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_task_trains_the_shared_experts_and_its_own_alone(tasks, layer):
    body, x = made(tasks, shared_experts=2, task_experts=3).teacher.body, inputs().shared
    own = (body.task_experts.first, *body.task_experts.rest)[layer].weight
    shared, gates = body.shared_experts.mlp.linears[layer].weight, body.gates.linear.weight
    _, found = body(x, x, None)
    for k in range(len(tasks)):
        of_own, of_shared, of_gates = gradients_of(weighted(found[k]), [own, shared, gates])
        sets = of_own.unflatten(0, (len(tasks), -1)).flatten(1)  # the deeper layers of a set's experts are one each
        assert sets.any(1).tolist() == [j == k for j in range(len(tasks))]
        assert of_shared.flatten(1).any(1).all()
        assert of_gates.flatten(1).any(1).tolist() == [j == k for j in range(len(tasks))]


def through_the_chain(entire_space, labels):
    """Which towers the loss of the last task trains."""
    head = made(THREE, entire_space=entire_space)
    term = head.terms(head(inputs()), labels, torch.ones(B, 3, dtype=torch.float64))["dmmp/teacher/buy"]
    (gradient,) = gradients_of((term.value * term.weight).sum(), [head.teacher.towers.last.weight])
    return gradient.flatten(1).any(1).tolist()


def test_rows_without_a_click_train_the_towers_of_conversions_over_the_entire_space_alone():
    none, all_of_it = torch.zeros(B, 3, dtype=torch.float64), torch.ones(B, 3, dtype=torch.float64)
    clicked = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(B, 3)
    for labels in (none, clicked, all_of_it):
        assert through_the_chain(True, labels) == [True, True, True]
    assert through_the_chain(False, none) == through_the_chain(False, clicked) == [False, False, False]
    assert through_the_chain(False, all_of_it) == [False, False, True]


@pytest.mark.parametrize("entire_space", [True, False])
def test_its_losses_equal_the_formulas(entire_space):
    head, given = made(THREE, entire_space=entire_space), inputs()
    labels, weights = labels_and_weights(3)
    terms = head.terms(head(given), labels, weights)
    conditional = torch.sigmoid(written_out(head.teacher, "cgc", [given.shared] * 3))
    p = conditional.cumprod(0) if entire_space else conditional
    before = torch.cat([torch.ones(B, 1), labels[:, :-1]], 1)  # a conversion is one given the task before
    for k, task in enumerate(THREE):
        y, term = labels[:, k], terms[f"dmmp/teacher/{task}"]
        torch.testing.assert_close(term.value, -y * p[k].log() - (1 - y) * (1 - p[k]).log(), **CLOSE)
        assert torch.equal(term.weight, weights[:, k] if entire_space else weights[:, k] * before[:, k])
