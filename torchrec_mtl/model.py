"""Tables below, everything else in one dense leaf above: `MultiTaskModel` is `Embeddings` and `Objective`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.collectives import all_sum, world_size
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.embeddings import Embedded, Embeddings, FeatureReader
from torchrec_mtl.features import Features
from torchrec_mtl.gradients.base import GradientRule
from torchrec_mtl.gradients.boundary import Boundary
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput, Term
from torchrec_mtl.losses.base import LabelScale, Loss
from torchrec_mtl.registry import resolve

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
        labels: [B, K].
        weights: [B, K].
        ids: name -> [B].
        stop: some rank asked to stop after this step.
    """

    names: tuple[str, ...]
    losses: Tensor
    loss_sums: Tensor
    weight_sums: Tensor
    predictions: Tensor
    labels: Tensor
    weights: Tensor
    ids: Mapping[str, Tensor]
    stop: bool


class Objective(nn.Module):
    """Boundary, bottom, head, and losses: the dense part, free of TorchRec's tracing.

    Args:
        reader: names the tables' outputs.
        bottoms: one, or one a task where the head owns its tables.
        head: representation to logits.
        losses: one a task.
        task_weights: one a task.
        rule: combines the tasks' gradients.
        at_representation: the boundary is where the bottom ends, else at the embeddings.
        seed: of the run.
    """

    active: Tensor

    def __init__(
        self,
        *,
        reader: FeatureReader,
        bottoms: Sequence[Bottom],
        head: Head,
        losses: Mapping[str, Loss],
        task_weights: Sequence[float],
        rule: GradientRule,
        at_representation: bool,
        seed: int,
    ) -> None:
        """See the class."""
        super().__init__()
        self.reader, self.seed, self.at_representation = reader, seed, at_representation
        self.tasks = tuple(losses)
        self.bottoms = nn.ModuleList(bottoms)
        self.head = head
        self.losses = nn.ModuleList(losses.values())
        self.names = (*self.tasks, *head.term_names)
        scale = [*task_weights, *[1.0] * len(head.term_names)]
        self.register_buffer("active", torch.tensor(scale), persistent=False)
        self._task_weights = scale
        self.boundary = Boundary(rule)
        self.stop_requested = False

    def activate(self, tasks: Sequence[str] | None) -> None:
        """Let only these tasks' losses count (None: all); the graph stays the same, as data parallel wants it."""
        on = [1.0 if tasks is None or name in tasks else 0.0 for name in self.names]
        self.active.copy_(torch.tensor([w * o for w, o in zip(self._task_weights, on, strict=True)]))

    def forward(
        self, pooled: KeyedTensor | None, unpooled: Mapping[str, JaggedTensor] | None, batch: Batch
    ) -> tuple[Tensor, StepOutput]:
        """Return (losses, output): TorchRec's contract; the sum of the losses is what is trained.

        Raises:
            NonFiniteLossError: on all ranks together, before any update.
        """
        embedded = self.reader.read(pooled, unpooled)
        representation, meeting = self._represent(embedded, batch)
        out: HeadOutput = self.head(representation)
        values, weights = self._elementwise(out, batch)
        losses, output = self._normalise(out, values, weights, batch)
        if meeting is not None:
            self.boundary.per_task_passes(losses[: len(self.names)], meeting)
        return losses, output

    def _represent(self, embedded: Embedded, batch: Batch) -> tuple[Representation, tuple[Tensor, ...] | None]:
        """Return the representation, and the tensors where per-task passes must meet (None: fan-out, or no rule)."""
        acts = self.boundary.rule.needs == "gramian" and self.training and torch.is_grad_enabled()
        if not acts or (not embedded.shared and not self.at_representation):
            return self._bottom(self._features(embedded, batch)), None
        if self.at_representation:
            representation = self._bottom(self._features(embedded, batch))
            if not self._can_fan_out:
                return representation, (representation.shared,)
            views = self.boundary.fan_out([representation.shared], len(self.tasks))
            return dataclasses.replace(representation, per_task=tuple(v[0] for v in views)), None
        if not self._can_fan_out or any(True for _ in self.bottoms.parameters()):
            return self._bottom(self._features(embedded, batch)), embedded.shared
        views = self.boundary.fan_out(embedded.shared, len(self.tasks))
        per_view = [self._bottom(self._features(embedded, batch, view)) for view in views]
        return dataclasses.replace(per_view[0], per_task=tuple(r.of_task(k) for k, r in enumerate(per_view))), None

    @property
    def _can_fan_out(self) -> bool:
        return self.head.isolates_tasks and not self.head.reads_features and not self.head.term_names

    def _features(self, embedded: Embedded, batch: Batch, view: Sequence[Tensor] | None = None) -> Features:
        return self.reader.features(embedded, batch, self.seed, view)

    def _bottom(self, features: Features) -> Representation:
        if self.head.tables != "own":
            representation: Representation = self.bottoms[0](features)
            return representation
        own = [bottom(features.select(task=task)).shared for bottom, task in zip(self.bottoms, self.tasks, strict=True)]
        return Representation(shared=own[0], per_task=tuple(own), features=features)

    def _elementwise(self, out: HeadOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return losses and weights of tasks and terms, [T, B] each; a row of weight 0 cannot bring a NaN in."""
        values = [
            loss(out.logits[task], batch.labels[:, k])
            for k, (task, loss) in enumerate(zip(self.tasks, self.losses, strict=True))
        ]
        terms: Mapping[str, Term] = self.head.terms(out, batch.labels, batch.weights)
        values += [terms[name].value for name in self.head.term_names]
        weights = torch.cat([batch.weights.T, *(terms[name].weight.unsqueeze(0) for name in self.head.term_names)])
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
        if self.training and self.boundary.rule.needs == "losses":
            losses = losses * self.boundary.rule.weights(None, all_losses.detach() / total)
        if out.penalties:
            losses = torch.cat([losses, torch.stack(list(out.penalties.values()))])
        return losses, StepOutput(
            names=self.names,
            losses=all_losses.detach() / total,
            loss_sums=loss_sums.detach(),
            weight_sums=weight_sums,
            predictions=self._predictions(out),
            labels=batch.labels,
            weights=batch.weights,
            ids=batch.ids,
            stop=stop,
        )

    @torch.no_grad()
    def _predictions(self, out: HeadOutput) -> Tensor:
        """Return [B, K] on the labels' scale."""
        columns = [cast(Loss, loss).predict(out.logits[t]) for t, loss in zip(self.tasks, self.losses, strict=True)]
        return torch.stack(columns, dim=1)

    def _share(self, weight_sums: Tensor, loss_sums: Tensor, step: int) -> tuple[Tensor, Tensor, bool]:
        """Return the sums over all ranks, and whether one asks to stop: one all-reduce and one host read a step.

        Raises:
            NonFiniteLossError: on all ranks together.
        """
        bad, stop = (~torch.isfinite(loss_sums)).float(), loss_sums.new_tensor([float(self.stop_requested)])
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


class MultiTaskModel(nn.Module):
    """The whole model: ``embeddings``, to be sharded, and ``objective``, a dense leaf."""

    def __init__(self, embeddings: Embeddings, objective: Objective) -> None:
        """Put the two together."""
        super().__init__()
        self.embeddings = embeddings
        self.objective = objective

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        """Return (losses [T], output). Traced by TorchRec's pipelines: no logic here."""
        pooled, unpooled = self.embeddings(batch)
        losses_and_output: tuple[Tensor, StepOutput] = self.objective(pooled, unpooled, batch)
        return losses_and_output


def build_model(
    config: RunConfig, scales: Mapping[str, LabelScale], *, device: torch.device | str = "cpu", tables: str = "meta"
) -> MultiTaskModel:
    """Build a model from a config.

    Args:
        config: the run.
        scales: label statistics by task.
        device: of the dense part, drawn from ``train.seed``.
        tables: device of the embedding tables; ``meta`` where they will be sharded.
    """
    head_class: type[Head] = resolve("head", config.head.type)
    bottom_class: type[Bottom] = resolve("bottom", config.bottom.type)
    losses: dict[str, Loss] = {
        t.name: resolve("loss", t.loss.type)(t.loss, scales.get(t.name, LabelScale())) for t in config.tasks
    }
    reader = FeatureReader(config.features, head_class.tables, config.task_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        bottoms = _build_bottoms(bottom_class, head_class, reader, config)
        outputs = {name: loss.num_outputs for name, loss in losses.items()}
        head = head_class(bottoms[0].out_features, outputs, cast(HeadConfig, config.head))
    names = (*config.task_names, *head.term_names)
    rule: GradientRule = resolve("rule", config.gradient.type)(config.gradient, names)
    objective = Objective(
        reader=reader,
        bottoms=bottoms,
        head=head,
        losses=losses,
        task_weights=[t.weight for t in config.tasks],
        rule=rule,
        at_representation=getattr(config.gradient, "at", "embeddings") == "representation",
        seed=config.train.seed,
    )
    embeddings = Embeddings(config.features, head_class.tables, config.task_names, device=tables)
    return MultiTaskModel(embeddings, objective.to(device))


def _build_bottoms(
    bottom_class: type[Bottom], head_class: type[Head], reader: FeatureReader, config: RunConfig
) -> list[Bottom]:
    if head_class.tables != "own":
        return [bottom_class(reader.spec, config.task_names, config.bottom)]
    return [bottom_class(reader.spec.select(task=name), (name,), config.bottom) for name in config.task_names]
