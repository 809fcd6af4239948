"""Optimizers of tables and dense part, and schedules as functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

import torch
import torchrec
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper, OptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_mtl.config.training import DenseOptimConfig, ScheduleConfig, SparseOptimConfig
from torchrec_mtl.initial import local_shards

_SPARSE: dict[str, Any] = {
    "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
# Fused: one kernel a step, where the default on a CPU is a Python loop over parameters that reads each step count.
_DENSE: dict[str, Any] = {
    "adam": functools.partial(torch.optim.Adam, fused=True),
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def schedule_factor(schedule: ScheduleConfig, step: int, total: int) -> float:
    """Return the factor on the learning rates at ``step`` (from 0) of ``total``."""
    warmup = schedule.warmup * total
    if step < warmup:
        return (step + 1) / math.ceil(warmup)
    done = (step - warmup) / max(total - 1 - warmup, 1)
    if schedule.type == "cosine":
        return schedule.end + (1 - schedule.end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if schedule.type == "step":
        return schedule.factor ** math.floor(step / total / schedule.every)
    return 1.0


def fuse_sparse_optimizer(tables: Iterable[nn.Parameter], config: SparseOptimConfig, device: torch.device) -> None:
    """Have the tables' optimizer applied in backward; call before sharding.

    Raises:
        ValueError: FBGEMM would ignore the weight decay.
    """
    if config.weight_decay and (device.type == "cpu" or config.type in {"sgd", "adagrad"}):
        raise ValueError(
            f"optim.sparse.weight_decay: FBGEMM's {config.type} on {device.type} has none and would ignore "
            f"{config.weight_decay}; set it to 0 (rowwise_adagrad and adam on cuda have it)"
        )
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.type != "sgd":
        options["eps"] = config.eps
    apply_optimizer_in_backward(_SPARSE[config.type], list(tables), options)


UpdateMasks = Callable[[], Sequence[tuple[nn.Parameter, torch.Tensor]]]


class MaskedUpdates(OptimizerWrapper):
    """An optimizer that leaves masked parts of parameters alone, their moments included.

    A gradient of 0 is not enough: Adam's moments go on moving a weight after its last gradient. The count of steps that
    corrects their bias is one for the whole parameter, and counts every step.

    Args:
        optimizer: any keyed one.
        masks: returns parameters with bool masks of what the step may change; asked before each step.
    """

    def __init__(self, optimizer: KeyedOptimizer, masks: UpdateMasks) -> None:
        super().__init__(optimizer)
        self._masks = masks

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401
        """Step, then put back what was not to change."""
        before = [
            (value, value.clone(), mask)
            for parameter, mask in self._masks()
            for value in (parameter, *self._moments(parameter))
        ]
        super().step(closure)
        for value, old, mask in before:
            value.copy_(torch.where(mask, value, old))

    def _moments(self, parameter: nn.Parameter) -> list[torch.Tensor]:
        state = self._optimizer.state[parameter].values()
        return [v for v in state if isinstance(v, torch.Tensor) and v.shape == parameter.shape]


class Optimizers:
    """Both optimizers of a sharded model, and their learning rates.

    Args:
        model: the sharded model.
        dense: options of the dense part.
        sparse_lr: base learning rate of the tables.
        update_masks: see `MaskedUpdates`; None: every step changes all.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        dense: DenseOptimConfig,
        sparse_lr: float,
        update_masks: UpdateMasks | None = None,
    ) -> None:
        parameters = dict(in_backward_optimizer_filter(model.named_parameters()))
        wrapped = KeyedOptimizerWrapper(
            parameters, lambda p: _DENSE[dense.type](p, lr=dense.lr, weight_decay=dense.weight_decay)
        )
        _materialise_state(wrapped)
        self._base: list[tuple[KeyedOptimizer, float]] = [(wrapped, dense.lr), (model.fused_optimizer, sparse_lr)]
        stepped: KeyedOptimizer = wrapped if update_masks is None else MaskedUpdates(wrapped, update_masks)
        if dense.clip_norm is not None:
            stepped = GradientClippingOptimizer(stepped, clipping=GradientClipping.NORM, max_gradient=dense.clip_norm)
        self.combined = CombinedOptimizer([model.fused_optimizer, stepped])
        self._saved = CombinedOptimizer([model.fused_optimizer, wrapped])
        self._fused, self._dense = model.fused_optimizer, wrapped

    def clear(self, *, tables: bool) -> None:
        """Set all moments and counts to 0, as before the first step; those of the tables where asked."""
        _zero(self._dense.state_dict()["state"])
        if tables:
            _zero(self._fused.state_dict()["state"])

    def set_step(self, step: int) -> None:
        """Tell the fused kernels how many steps were made; their count, for Adam, is in no state dict."""
        self._fused.set_optimizer_step(step)

    def set_factor(self, factor: float) -> None:
        """Set both learning rates to ``factor`` times their base; the fused kernels take theirs at ``zero_grad``."""
        for optimizer, base in self._base:
            for group in optimizer.param_groups:
                cast("dict[str, Any]", group)["lr"] = base * factor

    def state_dict(self) -> dict[str, Any]:
        """Return the state by parameter name; learning rates are functions of the step and not part of it."""
        return {"state": self._saved.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        self._saved.load_state_dict({**self._saved.state_dict(), "state": state["state"]})


def _materialise_state(optimizer: KeyedOptimizer) -> None:
    """Make the state tensors exist, as zeros: a checkpoint loads into tensors that are there.

    ``init_state`` takes a real step on zero gradients: AdamW would move the weights, Adam's step count would be 1.
    """
    weights = {name: p.detach().clone() for name, p in optimizer.params.items()}
    optimizer.init_state()
    with torch.no_grad():
        for name, p in optimizer.params.items():
            p.copy_(weights[name])
            p.grad = None
    _zero(optimizer.state)


@torch.no_grad()
def _zero(states: Mapping[Any, Any]) -> None:
    """Set every tensor of an optimizer's state to 0; of a sharded one, this rank's part."""
    for value in chain.from_iterable(state.values() for state in states.values()):
        if isinstance(value, torch.Tensor):
            for part, *_ in local_shards(value):
                part.zero_()
