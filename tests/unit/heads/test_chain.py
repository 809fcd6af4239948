"""Chained log-odds are exact where products of probabilities round to 0 or 1, and so are their gradients."""

import pytest
import torch

from torchrec_mtl.heads.chain import chain_logits, chain_names


def in_double(z):
    """Log-odds of the products, with 1 - p written as a sum without cancellation, in float64."""
    p = torch.sigmoid(z.double())
    q = torch.sigmoid(-z.double())
    log_odds, product, rest = [], torch.ones_like(p[0]), torch.zeros_like(p[0])
    for t in range(len(p)):
        rest, product = rest + product * q[t], product * p[t]
        log_odds.append(product.log() - rest.log())
    return torch.stack(log_odds), torch.cumsum(p.log(), 0)


def spread(num_tasks, scale):
    return (torch.rand(num_tasks, 5000, generator=torch.Generator().manual_seed(0)) * 2 - 1) * scale


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_log_odds_equal_float64(num_tasks, scale):
    z = spread(num_tasks, scale)
    for found, expected in zip(chain_logits(z), in_double(z), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_gradients_equal_float64(scale):
    z, exact = spread(3, scale).requires_grad_(), spread(3, scale).double().requires_grad_()
    (found,) = torch.autograd.grad(chain_logits(z)[0].sum(), z)
    (expected,) = torch.autograd.grad(in_double(exact)[0].sum(), exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_values_and_gradients_are_finite_for_huge_logits():
    z = torch.tensor([[1e4, -1e4, 1e4, -1e4], [1e4, -1e4, -1e4, 1e4]]).requires_grad_()
    logits, log_p = chain_logits(z)
    (gradient,) = torch.autograd.grad(logits.sum() + log_p.sum(), z)
    assert torch.isfinite(torch.stack([logits, log_p, gradient])).all()
    torch.testing.assert_close(logits[1], torch.tensor([1e4, -2e4, -1e4, -1e4]), rtol=1e-4, atol=0)


def test_probabilities_never_rise_along_the_chain():
    logits, _ = chain_logits(spread(6, 30.0))
    assert (logits.diff(dim=0) <= 1e-4).all()
    assert (logits.diff(dim=0) < -1).any()


@pytest.mark.parametrize(
    ("outputs", "binary", "message"),
    [
        ({"click": 1, "buy": 2}, None, r"esmm chains one logit .* \['buy'\] ask for more"),
        ({"click": 1}, ["bought"], r"told that \['bought'\] are binary, but the tasks are \['click'\]"),
    ],
)
def test_what_cannot_be_chained_is_refused(outputs, binary, message):
    with pytest.raises(ValueError, match=message):
        chain_names("esmm", outputs, binary)
