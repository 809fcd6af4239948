"""Towers in one batched product equal towers apart; batch norm equals torch's and leaves padding out."""

import copy

import pytest
import torch
from torch import nn

from torchrec_mtl.heads.layers import MLP, GlobalBatchNorm, LayerNorm, StackedLinear, make_norm
from torchrec_mtl.heads.towers import split_logits

K, B, I = 3, 7, 5  # noqa: E741


def copied(stacked: MLP, k: int, norm: str) -> MLP:
    """Return tower k alone."""
    alone = MLP(I, [m.weight.shape[2] for m in stacked.linears], norm=norm)
    with torch.no_grad():
        for mine, theirs in zip(alone.linears, stacked.linears):
            mine.weight.copy_(theirs.weight[k].T)
            mine.bias.copy_(theirs.bias[k, 0])
        for mine, theirs in zip(alone.norms, stacked.norms):
            mine.weight.copy_(theirs.weight[k, 0])
            mine.bias.copy_(theirs.bias[k, 0])
    return alone


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_stacked_towers_equal_towers_apart(norm):
    torch.manual_seed(0)
    stacked = MLP(I, (6, 4), norm=norm, num_towers=K)
    for m in stacked.norms:
        nn.init.normal_(m.weight)
        nn.init.normal_(m.bias)
    towers = [copied(stacked, k, norm) for k in range(K)]
    x, valid = torch.randn(K, B, I), torch.tensor([1.0, 1, 0, 1, 1, 1, 0])
    for _ in range(2):
        apart = torch.stack([tower(x[k], valid) for k, tower in enumerate(towers)])
        torch.testing.assert_close(stacked(x, valid), apart)
    shared = torch.stack([tower(x[0], valid) for tower in towers])
    torch.testing.assert_close(stacked(x[0], valid), shared)
    stacked.eval()
    torch.testing.assert_close(stacked(x), torch.stack([tower.eval()(x[k]) for k, tower in enumerate(towers)]))


def test_mlp_without_layers_is_the_identity():
    mlp, x = MLP(I, ()), torch.randn(B, I)
    assert torch.equal(mlp(x), x)
    assert mlp.out_features == I


def test_each_stacked_map_starts_as_a_linear_layer_does():
    torch.manual_seed(0)
    stacked = StackedLinear(50, 16, 64)
    bound = 1 / 16**0.5
    for p in (stacked.weight, stacked.bias):
        assert p.abs().max() <= bound
        assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_batch_norm_equals_torch():
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm(I), nn.BatchNorm1d(I)
    for norm in (ours, theirs):
        torch.manual_seed(1)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    for _ in range(3):
        x = torch.randn(B, I) * 3 + 50
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        weight = torch.randn(B, I)
        a, b = ours(mine), theirs(other)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        (a * weight).sum().backward()
        (b * weight).sum().backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-4, atol=1e-5)
    x = torch.randn(B, I)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_batch_norm_over_more_dimensions_counts_all_of_them_as_rows():
    torch.manual_seed(0)
    ours, theirs, x = GlobalBatchNorm(I), nn.BatchNorm1d(I), torch.randn(K, B, I)
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view_as(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("num_towers", [None, K])
def test_padding_changes_nothing(num_towers):
    torch.manual_seed(0)
    shape = (B, I) if num_towers is None else (K, B, I)
    whole = GlobalBatchNorm(I, num_towers)
    valid = torch.tensor([1.0, 1, 0, 1, 1, 1, 0])
    keep = valid.bool()
    x = torch.randn(shape)
    without = x[..., keep, :].clone().requires_grad_()
    weight = torch.randn_like(without)
    reference = copy.deepcopy(whole)
    expected = reference(without)
    (expected * weight).sum().backward()
    for padding in (0.0, 1e3):
        ours = copy.deepcopy(whole)
        padded = x.clone()
        padded[..., ~keep, :] = padding
        padded.requires_grad_()
        found = ours(padded, valid)[..., keep, :]
        torch.testing.assert_close(found, expected)
        (found * weight).sum().backward()
        torch.testing.assert_close(padded.grad[..., keep, :], without.grad)
        assert (padded.grad[..., ~keep, :] == 0).all()
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(ours, name), getattr(reference, name))
        torch.testing.assert_close(ours.weight.grad, reference.weight.grad)


def test_a_single_row_leaves_batch_norm_finite():
    norm = GlobalBatchNorm(I)
    assert torch.isfinite(norm(torch.randn(1, I))).all()
    assert torch.isfinite(norm.running_var).all()


def test_layer_norm_equals_torch():
    torch.manual_seed(0)
    ours, theirs, x = LayerNorm(I), nn.LayerNorm(I), torch.randn(B, I)
    with torch.no_grad():
        theirs.weight.copy_(nn.init.normal_(ours.weight))
        theirs.bias.copy_(nn.init.normal_(ours.bias))
    torch.testing.assert_close(ours(x, torch.zeros(B)), theirs(x))


def test_no_norm_is_no_layer():
    assert make_norm("none", I) is None
    assert len(MLP(I, (4,)).norms) == 0


def test_stacked_logits_are_cut_by_what_each_loss_asks():
    stacked = torch.arange(12.0).view(2, 2, 3)
    cut = split_logits(stacked, {"click": 1, "watch": 3})
    assert torch.equal(cut["click"], stacked[0, :, 0])
    assert torch.equal(cut["watch"], stacked[1])
