"""Masked copies of one weight against a loop over tasks."""

import pytest
import torch

from torchrec_mtl.heads.subnetworks import SubNetworks

B, SIZES = 6, (7, 4)


def made(in_features=5, sizes=SIZES):
    torch.manual_seed(0)
    layers = SubNetworks(in_features, sizes)
    for bias in layers.biases:
        torch.nn.init.normal_(bias)
    return layers


def masks_of(layers, tasks, density=0.5):
    return torch.rand(tasks, layers.num_connections, generator=torch.Generator().manual_seed(1)) < density


def split(layers, mask):
    """[N] to one [H, I] a layer."""
    found, start = [], 0
    for weight in layers.weights:
        found.append(mask[start : start + weight.numel()].view_as(weight))
        start += weight.numel()
    return found


def written_out(layers, masks, x):
    """Return [K, B, H] of x [K, B, I]: ``relu(h (W * M_k)^T + b)``, task by task."""
    found = []
    for k, mask in enumerate(masks):
        h = x[k]
        for weight, bias, m in zip(layers.weights, layers.biases, split(layers, mask), strict=True):
            h = torch.relu(h @ (weight * m).T + bias)
        found.append(h)
    return torch.stack(found)


def gradients(output, layers, x):
    factors = torch.linspace(-1, 1, output.numel()).view_as(output)
    return torch.autograd.grad((output * factors).sum(), [*layers.parameters(), x])


@pytest.mark.parametrize("in_features", [5, 8])  # rows of odd length are padded
@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_outputs_and_gradients_equal_a_loop_over_tasks(tasks, per_task, in_features):
    layers = made(in_features)
    masks = masks_of(layers, tasks)
    shape = (tasks, B, in_features) if per_task else (B, in_features)
    x = torch.randn(shape, requires_grad=True)
    found = layers(x, layers.masked(masks))
    expected = written_out(layers, masks, x if per_task else x.expand(tasks, -1, -1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, layers, x), gradients(expected, layers, x))


@pytest.mark.parametrize("per_task", [False, True])
def test_without_masks_one_network_serves_all(per_task):
    layers = made()
    x = torch.randn((3, B, 5) if per_task else (B, 5))
    found = layers(x, layers.masked(None))
    ones = torch.ones(3 if per_task else 1, layers.num_connections, dtype=torch.bool)
    torch.testing.assert_close(found, written_out(layers, ones, x if per_task else x[None]))


def test_a_weights_gradient_is_the_sum_of_the_tasks_gradients_under_their_masks():
    layers = made(sizes=(7,))
    masks, x = masks_of(layers, 3), torch.randn(B, 5)
    effective = layers.masked(masks)
    (found, of_effective) = torch.autograd.grad(layers(x, effective).square().sum(), [layers.weights[0], effective[0]])
    expected = sum(split(layers, mask)[0] * g for mask, g in zip(masks, of_effective, strict=True))
    torch.testing.assert_close(found, expected)
    assert expected.abs().sum() > 0


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_gradient_of_what_all_tasks_mask_is_exactly_0(tasks):
    layers = made()
    masks = masks_of(layers, tasks, density=0.3)
    layers(torch.randn(B, 5), layers.masked(masks)).square().sum().backward()
    dead = ~masks.any(0)
    gradient = torch.cat([weight.grad.flatten() for weight in layers.weights])
    assert gradient[dead].tolist() == [0.0] * int(dead.sum())
    assert gradient[~dead].abs().sum() > 0


@pytest.mark.parametrize("value", [1e6, float("inf"), float("nan")])
def test_outputs_do_not_depend_on_what_is_masked_whatever_it_is(value):
    layers = made()
    masks, x = masks_of(layers, 2), torch.randn(B, 5)
    before = layers(x, layers.masked(masks))
    with torch.no_grad():
        for number, weight in enumerate(layers.weights):
            weight[~split(layers, masks[1])[number]] = value
    assert torch.equal(layers(x, layers.masked(masks[1:])), layers(x, layers.masked(masks))[1:])
    assert torch.equal(layers(x, layers.masked(masks))[1], before[1])


def test_connections_are_the_weights_side_by_side_and_split_back():
    layers = made()
    assert layers.num_connections == 5 * 7 + 7 * 4
    assert layers.shapes == [(7, 5), (4, 7)]
    flat = layers.connections()
    assert not flat.requires_grad
    assert all(map(torch.equal, layers.per_layer(flat), layers.weights))
    assert [tuple(part.shape) for part in layers.per_layer(torch.zeros(2, 3, layers.num_connections))] == [
        (2, 3, 7, 5),
        (2, 3, 4, 7),
    ]


def test_weights_start_xavier_normal_and_biases_at_0():
    torch.manual_seed(0)
    layers = SubNetworks(720, (512, 256, 128))
    assert layers.num_connections == 532_480
    for weight in layers.weights:
        assert weight.std().item() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.02)
    assert all((bias == 0).all() for bias in layers.biases)
