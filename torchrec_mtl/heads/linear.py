"""A linear map whose input gradient is as fast for an odd width as for an even one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchrec_mtl.widths import is_autocast

_ALIGNED = 8  # floats; matrix products into rows of another length take a third longer


class Linear(nn.Linear):
    """``nn.Linear`` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., H] for [..., I]."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x weight^T + bias``, as ``torch.nn.functional.linear`` does.

    A few dense columns beside the fields are enough to make a width odd.

    Args:
        x: [..., I].
        weight: [H, I].
        bias: [H].
    """
    if weight.shape[1] % _ALIGNED and x.requires_grad and torch.is_grad_enabled() and not is_autocast(x):
        y: Tensor = _Padded.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return y
    return nn.functional.linear(x, weight, bias)


class _Padded(torch.autograd.Function):
    """Computes the input's gradient into rows of an aligned length, and returns a view of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        width = weight.shape[1]
        dx = (gradient @ nn.functional.pad(weight, (0, -width % _ALIGNED)))[..., :width]
        g = gradient.reshape(-1, gradient.shape[-1])
        dweight = g.t() @ x.reshape(-1, width) if ctx.needs_input_grad[1] else None
        dbias = g.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return dx, dweight, dbias
