"""The dense part of a model, one leaf for TorchRec's tracing: boundary, bottom, head, losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.collectives import all_sum, world_size
from torchrec_mtl.consistency import Consistency
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.embeddings import Embedded, FeatureReader
from torchrec_mtl.features import Features
from torchrec_mtl.gradients.base import Exactness, GradientRule
from torchrec_mtl.gradients.boundary import Boundary
from torchrec_mtl.heads.base import Head, HeadOutput, Term
from torchrec_mtl.losses.base import Loss
from torchrec_mtl.precision import Precision, autocast, full_output, full_representation

# Shapes: B batch, K tasks, T tasks and terms.


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; no weight and no optimizer state was updated, on any rank."""


@dataclass(frozen=True)
class StepOutput:
    """What a step returns beside the losses; everything is detached.

    Attributes:
        names: of the tasks and terms.
        losses: [T] unweighted means over all ranks.
        loss_sums: [T] of this rank.
        weight_sums: [T] of this rank.
        predictions: [B, K] on the labels' scale.
        further: the head's further predictions, name -> [B].
        labels: [B, K].
        weights: [B, K]; of the metrics, whatever gates the losses have.
        ids: name -> [B].
        stop: some rank asked to stop after this step.
        vectors: of a retrieval head, in evaluation: ``item`` [B, D] and ``query`` [B, K, D].
    """

    names: tuple[str, ...]
    losses: Tensor
    loss_sums: Tensor
    weight_sums: Tensor
    predictions: Tensor
    further: Mapping[str, Tensor]
    labels: Tensor
    weights: Tensor
    ids: Mapping[str, Tensor]
    stop: bool
    vectors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


class Objective(nn.Module):
    """Boundary, bottom, head, and losses: the dense part, free of TorchRec's tracing.

    Args:
        reader: names the tables' outputs.
        bottoms: one; one a task where the head owns its tables; with both kinds of tables, the shared one first.
        head: representation to logits.
        losses: one a task.
        task_weights: one a task.
        consistency: what ties the tasks together.
        rule: combines the tasks' gradients.
        at_representation: the boundary is where the bottom ends, else at the embeddings.
        seed: of the run.
        exact: what the Gramian of a rule is of.
        precision: of the matrix products in bottoms and head, in training and evaluation; all else is fp32.
    """

    active: Tensor
    on: Tensor

    def __init__(
        self,
        *,
        reader: FeatureReader,
        bottoms: Sequence[Bottom],
        head: Head,
        losses: Mapping[str, Loss],
        task_weights: Sequence[float],
        consistency: Consistency,
        rule: GradientRule,
        at_representation: bool,
        seed: int,
        exact: Exactness = "boundary",
        precision: Precision = "fp32",
    ) -> None:
        """See the class."""
        super().__init__()
        self.precision = precision
        self.reader, self.seed, self.at_representation = reader, seed, at_representation
        self.tasks = tuple(losses)
        self.bottoms = nn.ModuleList(bottoms)
        self.head = head
        self.losses = nn.ModuleList(losses.values())
        self.consistency = consistency
        self.names = (*self.tasks, *head.term_names, *head.constraint_names, *consistency.term_names)
        extra = len(head.term_names) + len(head.constraint_names)
        scale = [*task_weights, *[1.0] * extra, *consistency.order_weights]
        self.register_buffer("active", torch.tensor(scale), persistent=False)
        self.register_buffer("on", torch.ones(len(self.names)), persistent=False)
        self._all_on = True
        self._task_weights = scale
        self.rule = rule  # its state is the model's
        self.boundary = Boundary(rule, exact=exact, seed=seed, history_steps=None)  # the trainer clears it
        self.stop_requested = False

    def activate(self, tasks: Sequence[str] | None) -> None:
        """Let only these tasks' losses count (None: all); the graph stays the same, as data parallel wants it.

        ``on`` [T] then says which tasks and terms count; the others have no row with a weight, in losses and metrics.
        """
        named = self.names if tasks is None else {*tasks, *self.consistency.orders_among(tasks)}
        on = [1.0 if name in named else 0.0 for name in self.names]
        self._all_on = all(on)
        self.on.copy_(torch.tensor(on))
        self.active.copy_(torch.tensor([w * o for w, o in zip(self._task_weights, on, strict=True)]))
        self.head.activate(None if self._all_on else [task for task in self.tasks if task in named])

    def forward(
        self, pooled: KeyedTensor | None, unpooled: Mapping[str, JaggedTensor] | None, batch: Batch
    ) -> tuple[Tensor, StepOutput]:
        """Return (losses, output): TorchRec's contract; the sum of the losses is what is trained.

        Raises:
            NonFiniteLossError: on all ranks together, before any update.
        """
        embedded = self.reader.read(pooled, unpooled)
        with autocast(self.precision, self.active.device):
            representation, meeting = self._represent(embedded, batch)
            out: HeadOutput = self.head(representation)
        if self.precision != "fp32":
            out = full_output(out)
        values, weights = self._elementwise(out, batch)
        losses, output = self._normalise(out, values, weights, batch)
        if self._weighs:
            self._prepare(output.losses, embedded, batch)
        if meeting is not None:
            self.boundary.per_task_passes(losses, meeting)
        return self._weighed(losses, out), output

    @property
    def _weighs(self) -> bool:
        return self.rule.needs != "nothing" and self.training and torch.is_grad_enabled()

    def _prepare(self, losses: Tensor, embedded: Embedded, batch: Batch) -> None:
        """Tell the boundary what the weights of this step depend on."""
        at_tables = bool(embedded.shared) and self.rule.needs == "gramian" and not self.at_representation
        rows = at_tables and self.boundary.exact == "rows"
        layout = self.reader.layout(embedded) if rows or (at_tables and self.rule.groups == "table") else None
        ids = self.reader.ids(batch) if rows else None
        count = len(self.rule.tasks)  # not the penalties of orders: a rule would balance them against the tasks
        # A task that is off (in this phase, or by its weight) has no loss as far as a rule is concerned.
        seen = losses[:count] * (self.active[:count] > 0)
        self.boundary.prepare(step=batch.step, losses=seen, layout=layout, ids=ids)

    def _weighed(self, losses: Tensor, out: HeadOutput) -> Tensor:
        """Return the losses as they are summed: weighed by a rule that needs only losses, with all penalties."""
        if self._weighs and self.rule.needs == "losses":
            weights = self.boundary.loss_weights()
            losses = torch.cat([losses[: len(weights)] * weights, losses[len(weights) :]])
        penalties = list(out.penalties.values())
        if self._weighs and (own := self.rule.penalty()) is not None:
            penalties.append(own)
        return torch.cat([losses, torch.stack(penalties)]) if penalties else losses

    def _represent(self, embedded: Embedded, batch: Batch) -> tuple[Representation, tuple[Tensor, ...] | None]:
        """Return the representation, and the tensors where per-task passes must meet (None: fan-out, or no rule)."""
        if not self._weighs or self.rule.needs != "gramian" or (not embedded.shared and not self.at_representation):
            return self._bottom(self._features(embedded, batch)), None
        if self.at_representation:
            representation = self._bottom(self._features(embedded, batch))
            if not self._can_fan_out:
                return representation, (representation.shared,)
            views = self.boundary.fan_out([representation.shared], len(self.tasks))
            return dataclasses.replace(representation, per_task=tuple(v[0] for v in views)), None
        if not self._can_fan_out or self.boundary.exact == "dense" or any(True for _ in self.bottoms.parameters()):
            return self._bottom(self._features(embedded, batch)), embedded.shared
        views = self.boundary.fan_out(embedded.shared, len(self.tasks))
        per_view = [self._bottom(self._features(embedded, batch, view)) for view in views]
        return dataclasses.replace(per_view[0], per_task=tuple(r.of_task(k) for k, r in enumerate(per_view))), None

    @property
    def _can_fan_out(self) -> bool:
        head = self.head
        by_task = head.isolates_tasks and head.tables == "shared" and not head.reads_features
        return by_task and len(self.names) == len(self.tasks)

    def _features(self, embedded: Embedded, batch: Batch, view: Sequence[Tensor] | None = None) -> Features:
        return self.reader.features(embedded, batch, self.seed, view)

    def _bottom(self, features: Features) -> Representation:
        representation = represent(features, self.bottoms, self.head, self.tasks)
        return representation if self.precision == "fp32" else full_representation(representation)

    def _elementwise(self, out: HeadOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return losses and weights of tasks and terms, [T, B] each; a row of weight 0 cannot bring a NaN in."""
        values = [
            loss(out.logits[task], batch.labels[:, k])
            for k, (task, loss) in enumerate(zip(self.tasks, self.losses, strict=True))
        ]
        terms: dict[str, Term] = dict(self.head.terms(out, batch.labels, batch.weights))
        losses = dict(zip(self.tasks, self.losses, strict=True))
        terms |= self.consistency.terms(out.logits, losses, batch.weights)
        extra = [terms[name] for name in self.names[len(self.tasks) :]]
        values += [term.value for term in extra]
        own = self.consistency.loss_weights(batch.labels, batch.weights)
        weights = torch.cat([own.T, *(term.weight.unsqueeze(0) for term in extra)])
        if not self._all_on:
            weights = weights * self.on.unsqueeze(1)
        stacked = torch.stack(values)
        return torch.where(weights > 0, stacked * weights, torch.zeros_like(stacked)), weights

    def _normalise(self, out: HeadOutput, values: Tensor, weights: Tensor, batch: Batch) -> tuple[Tensor, StepOutput]:
        """Return losses divided by weight sums over ALL ranks, and the output."""
        # In an evaluation the sums of many batches are added up, and their rounding would show.
        dtype = torch.float32 if self.training else torch.float64
        loss_sums, weight_sums = values.sum(1, dtype=dtype), weights.sum(1, dtype=dtype)
        if self.training:
            all_weights, all_losses, stop = self._share(weight_sums, loss_sums.detach(), batch.step)
        else:
            all_weights, all_losses, stop = weight_sums, loss_sums, False
        total = all_weights.clamp_min(torch.finfo(torch.float32).tiny)
        # Data parallel averages over ranks, hence the world size.
        losses = loss_sums * (world_size() / total) * self.active
        return losses, StepOutput(
            names=self.names,
            losses=all_losses.detach() / total,
            loss_sums=loss_sums.detach(),
            weight_sums=weight_sums,
            predictions=predict(out, self.losses, self.consistency, self.tasks),
            further={name: value.detach() for name, value in out.predictions.items()},
            vectors={name: value.detach() for name, value in out.vectors.items()},
            labels=batch.labels,
            weights=batch.weights if self._all_on else batch.weights * self.on[: len(self.tasks)],
            ids=batch.ids,
            stop=stop,
        )

    def _share(self, weight_sums: Tensor, loss_sums: Tensor, step: int) -> tuple[Tensor, Tensor, bool]:
        """Return the sums over all ranks, and whether one asks to stop: one all-reduce and one host read a step.

        Raises:
            NonFiniteLossError: on all ranks together.
        """
        bad, stop = (~torch.isfinite(loss_sums)).float(), loss_sums.new_full((1,), float(self.stop_requested))
        count = len(self.names)
        shared = all_sum(torch.cat([weight_sums, loss_sums, bad, stop]))
        *flags, stops = shared[2 * count :].tolist()
        self._refuse(flags, step)
        return shared[:count], shared[count : 2 * count], stops > 0

    def _refuse(self, flags: Sequence[float], step: int) -> None:
        if bad := [name for name, flag in zip(self.names, flags, strict=True) if flag > 0]:
            raise NonFiniteLossError(
                f"the loss of {', '.join(bad)} is not finite at step {step}; no weight was updated at this step. "
                "Lower optim.dense.lr or optim.sparse.lr, set optim.dense.clip_norm, or look for extreme labels "
                "or inputs"
            )


def represent(features: Features, bottoms: Iterable[nn.Module], head: Head, tasks: Sequence[str]) -> Representation:
    """Return what the bottoms make of a batch.

    Args:
        features: of the batch.
        bottoms: one; one a task where the head owns its tables; with both kinds of tables, the shared one first.
        head: says whose tables there are.
        tasks: K names.
    """
    bottoms = list(bottoms)
    if head.tables == "shared":
        representation: Representation = bottoms[0](features)
        return representation
    shared = bottoms.pop(0)(features.select(shared=True)).shared if head.tables == "both" else None
    # The bottom of a task's own tables knows that task alone, its first.
    own = [bottom(features.select(task=task)).of_task(0) for bottom, task in zip(bottoms, tasks, strict=True)]
    return Representation(shared=own[0] if shared is None else shared, per_task=tuple(own), features=features)


def predict(out: HeadOutput, losses: Iterable[nn.Module], consistency: Consistency, tasks: Sequence[str]) -> Tensor:
    """Return predictions [B, K] on the labels' scale, of the logits of K tasks."""
    return consistency.predictions(on_label_scale(out, losses, tasks))


@torch.no_grad()
def on_label_scale(out: HeadOutput, losses: Iterable[nn.Module], tasks: Sequence[str]) -> Tensor:
    """Return [B, K]: what each loss predicts of its task's logits, whatever ties tasks together."""
    return torch.stack([cast(Loss, loss).predict(out.logits[t]) for t, loss in zip(tasks, losses, strict=True)], dim=1)
