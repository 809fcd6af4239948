"""A network that is cut down gives the scores of the whole, and is smaller."""

from itertools import pairwise

import pytest
import torch

from torchrec_mtl.heads.compact import compacted

B, WIDTHS = 32, (12, 10, 8, 3)  # the last layer is linear


def made(density=1.0, seed=0):
    torch.manual_seed(seed)
    shapes = list(zip(WIDTHS[1:], WIDTHS, strict=False))
    weights = [torch.randn(shape) * (torch.rand(shape) < density) for shape in shapes]
    return weights, [torch.randn(h) for h, _ in shapes]


def written_out(weights, biases, x):
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu(x @ weight.T + bias)
    return x @ weights[-1].T + biases[-1]


def check(weights, biases, widths):
    """Compare scores, and the sizes that are left."""
    before = [t.clone() for t in (*weights, *biases)]
    network = compacted(weights, biases)
    x = torch.randn(B, WIDTHS[0])
    torch.testing.assert_close(network(x), written_out(weights, biases, x), rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, before, (*weights, *biases)))
    assert [len(network.inputs), *map(len, network.biases)] == widths
    assert network.num_weights == sum(i * o for i, o in pairwise(widths))
    return network


def test_nothing_is_cut_from_a_network_that_uses_all():
    check(*made(), [12, 10, 8, 3])


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.03])
@pytest.mark.parametrize("seed", range(3))
def test_scores_of_random_sparse_networks_are_equal(density, seed):
    weights, biases = made(density, seed)
    network = compacted(weights, biases)
    x = torch.randn(B, WIDTHS[0])
    torch.testing.assert_close(network(x), written_out(weights, biases, x), rtol=1e-5, atol=1e-5)
    assert all((weight != 0).any(0).all() for weight in network.weights)  # all is read
    assert all((weight != 0).any(1).all() for weight in network.weights[:-1])  # all reads


def test_dead_inputs_are_not_read_at_all():
    weights, biases = made()
    weights[0][:, [2, 5]] = 0
    network = check(weights, biases, [10, 10, 8, 3])
    assert network.inputs.tolist() == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
    x = torch.randn(B, 12)
    x[:, 2] = torch.nan
    assert network(x).isfinite().all()


def test_units_that_nothing_reads_are_cut_with_what_only_they_read():
    weights, biases = made()
    weights[1][:, 3] = 0
    weights[0][:3, 7] = weights[0][4:, 7] = 0  # read by unit 3 alone
    check(weights, biases, [11, 9, 8, 3])


@pytest.mark.parametrize("bias", [2.0, -2.0])
def test_a_unit_that_reads_nothing_is_a_constant_in_the_next_bias(bias):
    weights, biases = made()
    weights[0][4], biases[0][4] = 0, bias
    check(weights, biases, [12, 9, 8, 3])


def test_constants_pass_through_several_layers():
    weights, biases = made()
    weights[0][4], biases[0][4] = 0, 2.0
    weights[1][6, :4] = weights[1][6, 5:] = 0  # reads the constant alone
    biases[1][6] = 1.0
    check(weights, biases, [12, 9, 7, 3])


@pytest.mark.parametrize(("dead", "widths"), [(0, [0, 0, 0, 3]), (1, [0, 0, 0, 3]), (2, [0, 0, 0, 3])])
def test_a_dead_layer_leaves_biases(dead, widths):
    weights, biases = made()
    weights[dead].zero_()
    check(weights, biases, widths)


def test_one_linear_map_alone_is_cut_too():
    weight, bias = torch.randn(2, 5), torch.randn(2)
    weight[:, 1] = 0
    network = compacted([weight], [bias])
    x = torch.randn(B, 5)
    torch.testing.assert_close(network(x), x @ weight.T + bias)
    assert network.inputs.tolist() == [0, 2, 3, 4]


def test_numbers_stay_as_exact_as_they_were():
    weights, biases = ([t.double() for t in tensors] for tensors in made(0.5))
    x = torch.randn(B, 12, dtype=torch.float64)
    torch.testing.assert_close(compacted(weights, biases)(x), written_out(weights, biases, x))
