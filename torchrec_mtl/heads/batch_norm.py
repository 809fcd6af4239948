"""Batch norm whose statistics are over the rows of all ranks, in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchrec_mtl.collectives import all_gather, all_sum, world_size
from torchrec_mtl.widths import full

# Shapes: B batch, K towers, H features; sums are over rows, kept as [..., 1, H].


class GlobalBatchNorm(nn.Module):
    """Batch norm whose statistics are over the rows of ALL ranks, padding left out.

    ``torch.nn.SyncBatchNorm`` refuses CPU, and TorchRec's data parallel does not broadcast buffers, so that plain
    running means would drift apart between ranks.

    Args:
        num_features: H.
        num_towers: K where the input is [K, B, H] and each tower has statistics of its own; None for [..., B, H].
        eps: added to the variance.
        momentum: weight of a batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, num_towers: int | None = None, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        """See the class."""
        super().__init__()
        self.stacked, self.eps, self.momentum = num_towers is not None, eps, momentum
        shape = (num_features,) if num_towers is None else (num_towers, 1, num_features)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: [K, B, H] with ``num_towers``, else [..., B, H].
            valid: [B], 1 for rows that count; None: all do.

        Returns:
            As x; in fp32 where x has 16 bits, since sums over a batch want more.
        """
        x = full(x)
        if not self.training:
            scale = torch.rsqrt(self.running_var + self.eps) * self.weight
            return torch.addcmul(self.bias - self.running_mean * scale, x, scale)
        if x.dim() > 2 and not self.stacked:
            rows = x.flatten(0, -2)
            valid = None if valid is None else valid.repeat(rows.shape[0] // len(valid))
            return self.forward(rows, valid).view_as(x)
        y, mean, var, count = _Normalise.apply(x, valid, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp_min(1)
            self.running_mean.lerp_(mean.view_as(self.running_mean), self.momentum)
            self.running_var.lerp_(unbiased.view_as(self.running_var), self.momentum)
        normalised: Tensor = y
        return normalised


class _Normalise(torch.autograd.Function):
    """``y = (x - m) r w + b`` with mean m and ``r = 1 / sqrt(var + eps)`` over the valid rows of all ranks.

    Written out, since autograd of the same formula goes over memory twice as often, and torch's own on CPU too.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        valid: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        v = None if valid is None else valid.unsqueeze(-1)
        rows = x.new_full((1,), x.shape[-2]) if valid is None else valid.sum().reshape(1)
        own_mean = _sum(x if v is None else x * v) / rows.clamp_min(1)
        centred = x - own_mean
        squares = _sum(centred.square() if v is None else centred.square().mul_(v))
        mean, var, count = _of_all_ranks(own_mean, squares, rows)
        if world_size() > 1:
            centred += own_mean - mean
        inverse = torch.rsqrt(var + eps)
        y = torch.addcmul(bias, centred, inverse * weight)
        ctx.save_for_backward(centred, inverse, weight, count, v)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        centred, inverse, weight, count, v = ctx.saved_tensors
        local = torch.stack([_sum(gradient), _sum(gradient * centred)])
        of_mean, of_centred = all_sum(local) / count
        scale = inverse * weight
        if v is None:
            dx = torch.addcmul(-scale * of_mean, gradient, scale)
            dx.addcmul_(centred, scale * inverse.square() * of_centred, value=-1)
        else:
            statistics = torch.addcmul(of_mean, centred, inverse.square() * of_centred).mul_(v)
            dx = (gradient - statistics).mul_(scale)
        dbias, dweight = local[0], local[1] * inverse
        return dx, None, dweight.view_as(weight), dbias.view_as(weight), None


def _of_all_ranks(mean: Tensor, squares: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance, and number of rows over all ranks, from this rank's mean, squares about it, and rows.

    One collective (Chan et al., 1979). The formula ``E[x^2] - E[x]^2`` would do with plain sums, and loses all digits
    where the mean is large.
    """
    if world_size() == 1:
        count = rows.clamp_min(1)
        return mean, squares / count, count
    means, all_squares, n = all_gather(torch.cat([mean.flatten(), squares.flatten(), rows])).tensor_split(
        [mean.numel(), 2 * mean.numel()], dim=1
    )
    count = n.sum(0).clamp_min(1)
    of_all = (n * means).sum(0) / count
    var = (all_squares + n * (means - of_all).square()).sum(0) / count
    return of_all.view_as(mean), var.view_as(mean), count


def _sum(x: Tensor) -> Tensor:
    return x.sum(-2, keepdim=True)
