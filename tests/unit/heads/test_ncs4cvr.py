"""The head against dense networks task by task, before and after steps of optimizers."""

import copy

import pytest
import torch
from torch import nn
from torchrec.optim.keyed import KeyedOptimizerWrapper

from tests.unit.heads.masked_head import (
    OUTPUTS,
    TWO,
    B,
    D,
    alone,
    flat,
    inputs,
    made,
    masked,
    play,
    random_masks,
    split,
)
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.heads.ncs4cvr import NCS4CVR
from torchrec_mtl.testing import check_head
from torchrec_mtl.training.optim import MaskedUpdates

# Logits and gradients


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("outputs", [{"watch": 3}, TWO, OUTPUTS], ids=len)
def test_logits_are_those_of_a_network_a_task(outputs, per_task):
    head = made(outputs)
    masks = random_masks(head)
    masked(head, masks)
    given = inputs(head.num_tasks if per_task else 0)
    found = head(given).logits
    assert list(found) == list(head.outputs)
    for k, (task, width) in enumerate(head.outputs.items()):
        expected = alone(head, masks[k], k, given.of_task(k))
        torch.testing.assert_close(found[task], expected[:, 0] if width == 1 else expected)


@pytest.mark.parametrize("masks", ["own", "dense"])
@pytest.mark.parametrize("per_task", [False, True])
def test_full_masks_make_a_plain_shared_bottom(masks, per_task):
    head = made(masks=masks)
    bottom = nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU())
    lasts = [nn.Linear(4, 1) for _ in TWO]
    with torch.no_grad():
        for plain, weight, bias in zip(bottom[::2], head.layers.weights, head.layers.biases, strict=True):
            plain.weight.copy_(weight)
            plain.bias.copy_(bias)
        for k, plain in enumerate(lasts):
            plain.weight.copy_(head.last.weight[k].T)
            plain.bias.copy_(head.last.bias[k, 0])
    given = inputs(2 if per_task else 0)
    found = torch.stack(list(head(given).logits.values()))
    expected = torch.stack([last(bottom(given.of_task(k)))[:, 0] for k, last in enumerate(lasts)])
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for plain, weight, bias in zip(bottom[::2], head.layers.weights, head.layers.biases, strict=True):
        torch.testing.assert_close(weight.grad, plain.weight.grad)
        torch.testing.assert_close(bias.grad, plain.bias.grad)
    for k, plain in enumerate(lasts):
        torch.testing.assert_close(head.last.weight.grad[k].T, plain.weight.grad)
        torch.testing.assert_close(head.last.bias.grad[k, 0], plain.bias.grad)


@pytest.mark.parametrize("task", [0, 1])
def test_a_task_depends_on_no_weight_that_its_mask_has_not(task):
    head = made()
    masks = random_masks(head)
    masked(head, masks)
    before = head(inputs()).logits[TWO[task]]
    before.square().sum().backward()
    gradient = flat(weight.grad for weight in head.layers.weights)
    assert (gradient[~masks[task]] == 0).all()
    assert gradient[masks[task]].abs().sum() > 0
    with torch.no_grad():
        for weight, m in zip(head.layers.weights, split(head, masks[task]), strict=True):
            weight[~m] = 1e9
    assert torch.equal(head(inputs()).logits[TWO[task]], before)


def test_disjoint_masks_have_gradients_of_disjoint_support():
    head = made()
    one = random_masks(head)[0]
    masked(head, torch.stack([one, ~one]))
    out = head(inputs()).logits
    gradients = [
        flat(torch.autograd.grad(out[task].square().sum(), list(head.layers.weights), retain_graph=True))
        for task in TWO
    ]
    assert all((g != 0).any() for g in gradients)
    assert not ((gradients[0] != 0) & (gradients[1] != 0)).any()


def test_biases_and_last_maps_are_not_masked():
    head = masked(made(), torch.zeros(2, 50, dtype=torch.bool))
    found = head(inputs()).logits["buy"]
    hidden = torch.relu(head.layers.biases[1])
    torch.testing.assert_close(found, (hidden @ head.last.weight[1] + head.last.bias[1])[0].expand(B))


# Steps of optimizers


def optimizer(head, make, *, mask):
    wrapped = KeyedOptimizerWrapper(dict(head.named_parameters()), make)
    return MaskedUpdates(wrapped, head.update_masks) if mask else wrapped


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def train(head, optim, tasks, seed=0):
    head.activate(tasks)
    optim.zero_grad()
    out = head(inputs(seed=seed)).logits
    sum((out[task] - 1).square().mean() for task in tasks or head.tasks).backward()
    optim.step()


def private(head):
    """What click alone uses, as one mask [H, I] a layer."""
    masks = head.rounds.current()
    return split(head, masks[0] & ~masks[1])


def moved(head, make, *, mask):
    """Whether a step on buy moves click's private connections, after one on click."""
    masked(head, random_masks(head))
    optim = optimizer(head, make, mask=mask)
    train(head, optim, ["click"])
    before = [weight.detach().clone() for weight in head.layers.weights]
    train(head, optim, ["buy"], seed=1)
    parts = zip(head.layers.weights, before, private(head), strict=True)
    return any(not torch.equal(weight[mine], old[mine]) for weight, old, mine in parts)


def test_a_step_of_sgd_on_one_task_leaves_the_others_connections_alone():
    assert not moved(made(), sgd, mask=False)


def test_a_shared_adam_moves_them_as_in_the_authors_code():
    assert moved(made(), adam, mask=False)
    assert moved(made(mask_updates=False), adam, mask=True)


def test_masked_updates_leave_them_alone():
    assert not moved(made(), adam, mask=True)


def test_masked_updates_leave_moments_and_last_maps_of_other_tasks_alone():
    head = made()
    masks = masked(head, random_masks(head)).rounds.current()
    optim = optimizer(head, adam, mask=True)
    for step in range(3):
        train(head, optim, [TWO[step % 2]], seed=step)
    parameters = [*head.layers.weights, head.last.weight, head.last.bias]
    # What a step on buy may change: buy's connections, and its row of the last maps.
    mine = [*split(head, masks[1]), *(torch.tensor([0, 1]).bool()[:, None, None].expand_as(p) for p in parameters[2:])]

    def values():
        return [(p, optim.state[p]["exp_avg"], optim.state[p]["exp_avg_sq"]) for p in parameters]

    before = copy.deepcopy(values())
    train(head, optim, ["buy"], seed=3)
    for old, new, m in zip(before, values(), mine, strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a[~m], b[~m])
            assert not torch.equal(a[m], b[m])


@pytest.mark.parametrize("batches", ["joint", "alternate"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("make", [adam, sgd])
def test_what_no_task_has_keeps_its_first_value(make, mask, batches):
    head = made()
    masks = random_masks(head, density=0.4)
    masked(head, masks)
    first, dead = flat(head.layers.weights), ~masks.any(0)
    optim = optimizer(head, make, mask=mask)
    for step in range(6):
        train(head, optim, None if batches == "joint" else [TWO[step % 2]], seed=step)
    last = flat(head.layers.weights)
    assert torch.equal(first[dead], last[dead])
    assert not torch.equal(first[~dead], last[~dead])
    assert dead.sum() > 5


def test_a_batch_of_all_tasks_may_change_what_any_has():
    head = masked(made(), random_masks(made()))
    changed = {id(p): mask for p, mask in head.update_masks()}
    for weight, either in zip(head.layers.weights, split(head, head.rounds.current().any(0)), strict=True):
        assert torch.equal(changed[id(weight)], either)
    assert changed[id(head.last.weight)].all()


def test_in_a_chain_a_later_tasks_batch_may_change_what_earlier_tasks_have():
    head = made(("click", "cart", "buy"), chain=True)
    masks = random_masks(head)
    masked(head, masks).activate(["cart"])
    changed = {id(p): mask for p, mask in head.update_masks()}
    for weight, either in zip(head.layers.weights, split(head, masks[0] | masks[1]), strict=True):
        assert torch.equal(changed[id(weight)], either)
    assert changed[id(head.last.bias)].flatten().tolist() == [True, True, False]


# Active tasks and chains


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("masks", ["own", "one", "random", "dense"])
@pytest.mark.parametrize("active", [["click"], ["watch"], ["buy", "watch"], None], ids=str)
def test_inactive_tasks_have_logits_of_zero_and_active_ones_those_of_all(active, masks, per_task):
    head = made(OUTPUTS, masks=masks)
    if masks != "dense":
        masked(head, random_masks(head))
    given = inputs(3 if per_task else 0)
    every = head(given).logits
    head.activate(active)
    found = head(given).logits
    assert list(found) == list(every)
    for task, z in every.items():
        expected = z if active is None or task in active else torch.zeros_like(z)
        torch.testing.assert_close(found[task], expected)
    head.activate(None)
    assert all(map(torch.equal, head(given).logits.values(), every.values()))


def test_with_no_task_active_all_logits_are_zero():
    head = made()
    head.activate([])
    assert not torch.stack(list(head(inputs()).logits.values())).any()


@pytest.mark.parametrize("active", [["click"], ["watch"], ["buy", "watch"]], ids=str)
def test_every_parameter_has_a_gradient_whatever_is_active(active):
    head = masked(made(OUTPUTS), random_masks(made(OUTPUTS)))
    head.activate(active)
    out = head(inputs()).logits
    sum(z.square().sum() for z in out.values()).backward()
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in head.parameters())
    trained = head.last.weight.grad.abs().sum((1, 2)) > 0
    assert trained.tolist() == [task in active for task in OUTPUTS]


CHAIN = {"click": 1, "watch": 2, "cart": 1, "buy": 1}
BINARY = ("click", "cart", "buy")


def chained():
    head = made(CHAIN, binary=BINARY, chain=True)
    return masked(head, random_masks(head))


def test_chained_logits_are_those_of_products_as_in_esmm():
    head, given = chained(), inputs()
    masks, out = head.rounds.current(), head(given)
    own = {task: alone(head, masks[k], k, given.shared) for k, task in enumerate(CHAIN)}
    click, cart, buy = (torch.sigmoid(own[task][:, 0]) for task in BINARY)
    for task, p in {"click": click, "cart": click * cart, "buy": click * cart * buy}.items():
        torch.testing.assert_close(torch.sigmoid(out.logits[task]), p)
    torch.testing.assert_close(out.logits["watch"], own["watch"])
    assert out.predictions.keys() == {"cart_given_click", "buy_given_cart"}
    torch.testing.assert_close(out.predictions["cart_given_click"], cart)
    torch.testing.assert_close(out.predictions["buy_given_cart"], buy)


@pytest.mark.parametrize(
    ("active", "computed"),
    [("click", ["click"]), ("cart", ["click", "cart"]), ("buy", list(BINARY)), ("watch", ["watch"])],
)
def test_an_active_task_of_a_chain_takes_those_before_along(active, computed):
    head = chained()
    every = head(inputs())
    head.activate([active])
    found = head(inputs())
    for task, z in every.logits.items():
        torch.testing.assert_close(found.logits[task], z if task in computed else torch.zeros_like(z))
    for name, p in found.predictions.items():
        torch.testing.assert_close(p, every.predictions[name])
    # A regression has no part in the chain, wherever it stands.
    out = found.logits[active].square().sum()
    (gradient,) = torch.autograd.grad(out, head.last.weight)
    assert (gradient.abs().sum((1, 2)) > 0).tolist() == [task in computed for task in CHAIN]


def test_a_round_of_a_chained_task_trains_those_before_too():
    trained = {phase.name: phase.tasks for phase in chained().phases(1)}
    assert trained["click, round 0"] == ("click",)
    assert trained["cart, round 0"] == ("click", "cart")
    assert trained["buy, round 3"] == ("click", "cart", "buy")
    assert trained["watch, round 0"] == ("watch",)


# A task's network alone


def learned(outputs=TWO, **options):
    """A head whose masks are the largest weights', task by task."""
    head = made(outputs, shared=(16, 12, 8), rounds=2, density=0.15, choose="last", **options)
    play(head, {})
    return head


@pytest.mark.parametrize("task", OUTPUTS)
def test_a_tasks_network_alone_gives_its_scores_and_is_smaller(task):
    head = learned(OUTPUTS)
    network = head.compacted(task)
    found, expected = network(inputs().shared), head(inputs()).logits[task]
    torch.testing.assert_close(found, expected.view(B, -1), rtol=1e-5, atol=1e-6)
    assert network.num_weights < head.layers.num_connections + 8 * OUTPUTS[task]


@pytest.mark.parametrize("masks", ["one", "dense"])
def test_other_masks_have_networks_too(masks):
    head = learned(OUTPUTS, masks=masks)
    torch.testing.assert_close(head.compacted("watch")(inputs().shared), head(inputs()).logits["watch"])


def test_dead_inputs_and_units_of_a_task_are_cut_for_it_alone():
    head = made(shared=(5, 4))
    masks = torch.ones(2, 50, dtype=torch.bool)
    first, second = split(head, masks[0])
    first[:, 2] = False  # an input
    first[1] = False  # a unit that reads nothing: a constant
    second[:, 3] = False  # a unit that nothing reads
    masked(head, masks)
    with torch.no_grad():
        head.layers.biases[0][1] = 2.0
    network = head.compacted("click")
    assert network.inputs.tolist() == [0, 1, 3, 4, 5]
    assert network.num_weights == 5 * 3 + 3 * 4 + 4
    torch.testing.assert_close(network(inputs().shared)[:, 0], head(inputs()).logits["click"])
    assert head.compacted("buy").num_weights == 6 * 5 + 5 * 4 + 4


def test_a_whole_dead_layer_leaves_a_constant():
    head = made()
    masks = torch.ones(2, 50, dtype=torch.bool)
    split(head, masks[1])[1].zero_()
    network = masked(head, masks).compacted("buy")
    assert network.num_weights == 0
    torch.testing.assert_close(network(inputs().shared)[:, 0], head(inputs()).logits["buy"])


def test_a_chained_tasks_network_gives_the_logit_before_the_product():
    head = learned(chain=True)
    click, buy = (torch.sigmoid(head.compacted(task)(inputs().shared)[:, 0]) for task in TWO)
    torch.testing.assert_close(torch.sigmoid(head(inputs()).logits["buy"]), click * buy)
    assert "before ``chain``" in NCS4CVR.compacted.__doc__


def test_a_task_that_is_not_there_is_refused_by_name():
    with pytest.raises(ValueError, match="buyy"):
        made().compacted("buyy")


# In a whole model


class Pruned(NCS4CVR):
    """Starts with masks as rounds leave them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.options.masks != "dense":
            masked(self, random_masks(self, density=0.4))


@pytest.mark.parametrize("options", [{}, {"masks": "one"}, {"chain": True}, {"grow": 0.2}], ids=str)
def test_a_pruned_head_keeps_its_promises(options):
    check_head(Pruned, Pruned.Config(type="Pruned", shared=(16, 12), **options))


@pytest.mark.parametrize("options", [{}, {"masks": "dense"}, {"chain": True}], ids=str)
def test_a_whole_model_learns_every_task(options):
    before, after = losses_over_training(NCS4CVR, NCS4CVR.Config(shared=(16,), **options))
    assert (after < before).all()
