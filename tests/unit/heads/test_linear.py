"""The padded input gradient beside torch's own linear map."""

import pytest
import torch

from torchrec_mtl.heads.linear import Linear, linear


@pytest.mark.parametrize("shape", [(6, 13), (2, 3, 13), (6, 16)], ids=["odd width", "three dimensions", "aligned"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_torch(shape, with_bias):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    weight = torch.randn(5, shape[-1], dtype=torch.double, requires_grad=True)
    bias = torch.randn(5, dtype=torch.double, requires_grad=True) if with_bias else None
    leaves = [x, weight] if bias is None else [x, weight, bias]
    ours, theirs = linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    upstream = torch.randn_like(ours)
    assert torch.equal(ours, theirs)
    for found, expected in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_frozen_weights_get_no_gradient():
    layer = Linear(13, 5)
    layer.weight.requires_grad_(False)
    x = torch.randn(4, 13, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_an_input_without_gradient_is_torchs_own_map():
    x, layer = torch.randn(4, 13), Linear(13, 5)
    assert type(layer(x).grad_fn).__name__ == "AddmmBackward0"
