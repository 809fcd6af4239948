"""Mixtures beside an einsum, small enough for the plain way and large enough for the product."""

import pytest
import torch

from torchrec_mtl.heads.experts import mix


@pytest.mark.parametrize(("tasks", "experts", "width"), [(2, 1, 5), (2, 3, 66), (2, 4, 64), (5, 3, 64)])
def test_a_mixture_and_its_gradients_are_those_of_an_einsum(tasks, experts, width):
    torch.manual_seed(0)
    weights = torch.randn(tasks, 7, experts, dtype=torch.double, requires_grad=True)
    values = torch.randn(7, experts, width, dtype=torch.double, requires_grad=True)
    found, expected = mix(weights, values), torch.einsum("kbe,beh->kbh", weights, values)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, [weights, values], upstream),
        torch.autograd.grad(expected, [weights, values], upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
