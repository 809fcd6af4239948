"""A head, its tasks' losses, and a gradient rule in a TorchRec model of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.collectives import all_sum, world_size
from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.gradients.base import RuleConfig
from torchrec_mtl.gradients.hook import GradientHook
from torchrec_mtl.heads.base import Head, HeadOutput
from torchrec_mtl.losses.base import LabelScale, Loss
from torchrec_mtl.objective import on_label_scale
from torchrec_mtl.registry import resolve

# Shapes: B batch, D representation, K tasks, T tasks and the head's extra losses.

LossChoice = str | Mapping[str, object] | Loss


class MultiTaskArch(nn.Module):
    """What TorchRec's ``OverArch`` and the loss behind it become with several tasks.

    It has no sharded child, so that a train pipeline takes it as a leaf and does not trace it. Each task's loss is a
    weighted mean over the rows of all ranks, as data parallel averages it; the head's own losses (distillation, hinges,
    penalties) are added.

    Args:
        head: from representation to logits; its tasks are those of the labels, in this order.
        losses: task -> loss: its name, or its options as in a YAML (``{"type": "mse", "transform": "log1p"}``), or a
            built one, where it is to know the label's mean and standard deviation (`LabelScale`).
        gradient: options of the gradient rule, such as ``HTLNetRule.Config(core="watch_time")``; None: the plain sum.
        tables: of the collection, needed for ``exact="rows"`` and for rules by table.
        seed: of rules that draw.

    Attributes:
        hook: the `GradientHook`, or None.

    Raises:
        ValueError: losses of other tasks than the head's, or with another number of logits; a head that trains in
            phases, which only this library's trainer goes through, or one that wants tables of each task.

    Example:
        >>> from torchrec_mtl import HTLNet
        >>> arch = MultiTaskArch(HTLNet(8, ["click", "watch"]), {"click": "bce", "watch": "mse"})
        >>> loss, (losses, predictions, _) = arch(torch.zeros(4, 8), torch.ones(4, 2))
        >>> loss.shape, losses.shape, predictions.shape
        (torch.Size([]), torch.Size([2]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        head: Head,
        losses: Mapping[str, LossChoice],
        gradient: RuleConfig | None = None,
        *,
        tables: Sequence[EmbeddingBagConfig] = (),
        seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        _refuse(head, losses)
        self.tasks = tuple(head.outputs)
        self.head = head
        self.losses = nn.ModuleList(_build(task, losses[task], head.outputs[task]) for task in self.tasks)
        # Of the head's own losses, rules balance terms like tasks; constraints weigh 1 under every rule.
        self.balanced = (*self.tasks, *head.term_names)
        self.hook = None if gradient is None else GradientHook(gradient, self.balanced, tables=tables, seed=seed)

    def forward(
        self,
        x: Tensor | Representation,
        labels: Tensor,
        *,
        pooled: Tensor | KeyedTensor | None = None,
        sparse: KeyedJaggedTensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return (loss, (losses, predictions, labels)), as TorchRec's ``DLRMTrain`` does.

        Args:
            x: [B, D], what the over-arch read; or a representation, for heads that read more.
            labels: [B, K]; may be nan where the weight is 0.
            pooled: output of the tables, from which ``x`` was computed; where the gradient rule acts.
            sparse: the ids that were looked up, for ``exact="rows"``.
            weights: [B, K], 0 where a task has no label; None: 1 everywhere.

        Returns:
            The loss to train, a scalar; and, detached, the losses [T] over all ranks in training, the predictions
            [B, K] on the labels' scale, and the labels.

        Raises:
            ValueError: labels or weights of another shape; a gradient rule, but no ``pooled``.
        """
        weights = torch.ones_like(labels) if weights is None else weights
        representation = Representation(x) if isinstance(x, Tensor) else x
        self._check(representation.shared.shape[0], labels, weights, pooled)
        out: HeadOutput = self.head(representation)
        losses, shown = self._losses(out, labels, weights)
        loss = self._total(losses, pooled, sparse)
        loss = loss + sum(out.penalties.values(), start=loss.new_zeros(()))
        return loss, (shown, on_label_scale(out, self.losses, self.tasks), labels)

    def _check(self, rows: int, labels: Tensor, weights: Tensor, pooled: object) -> None:
        for name, value in (("labels", labels), ("weights", weights)):
            if value.shape != (rows, len(self.tasks)):
                raise ValueError(
                    f"{name}: expected [B, {len(self.tasks)}], a column for each of {', '.join(self.tasks)}, and B = "
                    f"{rows} rows as in x; found {list(value.shape)}"
                )
        if self.hook is not None and pooled is None:
            raise ValueError("a gradient rule acts where the tasks meet: pass the tables' output as pooled=")

    def _losses(self, out: HeadOutput, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses [T] as they are summed, and as they are shown."""
        # A label that weighs nothing may be nan, and 0 * nan is nan in backward. Every loss takes 1, not each takes 0.
        labels = torch.where(weights > 0, labels, 1.0)
        values = [loss(out.logits[t], labels[:, k]) for k, (t, loss) in enumerate(zip(self.tasks, self.losses))]
        terms = self.head.terms(out, labels, weights)
        extra = [terms[name] for name in (*self.head.term_names, *self.head.constraint_names)]
        stacked = torch.stack([*values, *(term.value for term in extra)])
        weighed = torch.cat([weights.T.to(stacked), *(term.weight.unsqueeze(0) for term in extra)])
        sums, mass = torch.where(weighed > 0, stacked * weighed, 0.0).sum(1), weighed.sum(1)
        # When evaluating, ranks may have different numbers of batches, and do not wait for each other.
        shared = all_sum(torch.stack([sums, mass])) if self.training else torch.stack([sums, mass]).detach()
        total = shared[1].clamp_min(torch.finfo(torch.float32).tiny)
        return sums * ((world_size() if self.training else 1) / total), shared[0] / total

    def _total(self, losses: Tensor, pooled: Tensor | KeyedTensor | None, sparse: KeyedJaggedTensor | None) -> Tensor:
        if self.hook is None or pooled is None:
            return losses.sum()
        count = len(self.balanced)
        total: Tensor = self.hook(losses[:count], pooled, sparse, others=losses[count:]).sum()
        return total


def _refuse(head: Head, losses: Mapping[str, LossChoice]) -> None:
    tasks = list(head.outputs)
    if unknown := [name for name in losses if name not in tasks]:
        raise ValueError(f"losses: the head has no task '{unknown[0]}'.{did_you_mean(unknown[0], tasks)}")
    if missing := [name for name in tasks if name not in losses]:
        raise ValueError(f"losses: name one for each task of the head; missing: {', '.join(missing)}")
    if head.tables != "shared":
        raise ValueError(
            f"{type(head).__name__} wants tables of each task (tables = '{head.tables}'), and here all tasks read the "
            "same; take a head of shared tables, or train it from a YAML (torchrec-mtl train)"
        )
    if len(phases := head.phases(1)) > 1:
        raise ValueError(
            f"{type(head).__name__} trains in phases ({', '.join(p.name for p in phases[:3])}, ...), which a plain "
            "loop does not go through; train it from a YAML (torchrec-mtl train)"
        )


def _build(task: str, choice: LossChoice, width: int) -> Loss:
    if isinstance(choice, Loss):
        loss = choice
    else:
        options = {"type": choice} if isinstance(choice, str) else dict(choice)
        loss_class: type[Loss] = resolve("loss", str(options.get("type")))
        loss = loss_class(loss_class.Config.model_validate(options), LabelScale())
    if loss.num_outputs != width:
        raise ValueError(
            f"losses: that of '{task}' needs {loss.num_outputs} logits and the head gives {width}; build the head with "
            f"outputs={{..., '{task}': {loss.num_outputs}}}"
        )
    return loss
