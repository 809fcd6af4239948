"""Deep task-specific bottom representation network (Liu et al., CIKM 2023)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.bottoms.concat import Concat, side_by_side
from torchrec_mtl.bottoms.conditions import Condition, HyperNetwork, PlainNorms
from torchrec_mtl.bottoms.interest import Interest
from torchrec_mtl.bottoms.refinement import Granularity, Refinement, Squeeze
from torchrec_mtl.bottoms.targets import check_features, target_problems
from torchrec_mtl.config.base import PluginConfig, Targets, Widths
from torchrec_mtl.features import Features, FeaturesSpec

# Shapes: B batch, K tasks, J sequences, D all columns, d width of a sequence.

_OF_INTEREST = ("pool", "heads", "layers", "ffn", "positions")
_OF_CONDITION = ("condition", "task_dim", "behavior_dim", "hyper")
_OF_REFINEMENT = ("granularity", "squeeze", "reduction")


class DTRN(Bottom):
    """Make a representation of each task: what its transformer sees in the histories, and gates on all features.

    Task-specific interests ``s_{k,j}`` of all behaviour sequences (`Interest`), side by side with the fields and the
    dense columns, refined by gates of the task (`Refinement`): ``o_k``. ``shared`` is the mean of the ``o_k``.

    The paper is known to us by its abstract and summaries; the forms are choices of ours where the docstrings of
    `Interest`, `HyperNetwork`, and `Refinement` do not name its equations: the place of the norms, residual scales,
    normalised targets, mean-squeezed gates of fields, a dense column as a field of its own.

    Args:
        spec: features to read; the sequences all of one width.
        tasks: names of the K tasks.
        config: which modules, and their sizes.

    Raises:
        ValueError: the sequences, or a sequence and its target, differ in width.
    """

    per_task = True
    shares_histories = True

    class Config(PluginConfig):
        """Options of ``bottom: {type: dtrn}``."""

        type: str = "dtrn"
        interest: Literal["conditional", "plain", "pooled"] = "conditional"
        """conditional: by task and behaviour; plain: one transformer that knows neither; pooled: the mean of each
        sequence's embeddings."""
        condition: Condition = "both"
        """What the hyper-network knows: both, the task only, or the behaviour only."""
        pool: Literal["target", "mean"] = "target"
        """How a sequence becomes one vector. target: attention to the item that it names as its target (a sequence that
        names none is averaged); mean."""
        heads: PositiveInt = 2
        """Heads of self-attention; they divide the sequences' dim."""
        layers: PositiveInt = 1
        """Layers of the transformer."""
        ffn: PositiveInt = 4
        """The feed-forward part is this many times wider than the sequences' dim."""
        positions: bool = True
        """Embeddings of positions, counted from the last event."""
        task_dim: PositiveInt = 16
        """Width of a task's embedding."""
        behavior_dim: PositiveInt = 16
        """Width of a behaviour's embedding."""
        hyper: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        """Widths of the hyper-network's hidden layers."""
        refinement: Literal["task", "shared", "none"] = "task"
        """Gates on the features: of each task, one set for all tasks, or none."""
        granularity: Granularity = "field"
        """A gate for each feature, or for each column (bit)."""
        squeeze: Squeeze = "mean"
        """What gates read: the mean of each feature's columns, or all columns (flat)."""
        reduction: PositiveInt = 4
        """The gates' hidden layer is this many times narrower than what they read."""

        def feature_problems(self, fields: Widths, sequences: Widths, targets: Targets) -> list[str]:
            """Sequences must be there, with a dim that the heads divide; no option may be without effect."""
            found = [f"{name}: without effect with {why}; remove it" for name, why in self._idle().items()]
            if self.interest == "pooled":
                return found
            if not sequences:
                found.append(
                    "interest: dtrn reads behaviour sequences, and there are none; list them under features.sequences, "
                    "or set interest: pooled"
                )
            widths = {width for width in sequences.values() if width is not None}
            found += [
                f"heads: {self.heads} heads do not divide the sequences' dim {width}; take a divisor"
                for width in sorted(widths)
                if width % self.heads
            ]
            return found + (target_problems("pool", fields, sequences, targets) if self.pool == "target" else [])

        def _idle(self) -> Mapping[str, str]:
            """Return option -> why it does nothing, of those that are not at their defaults."""
            idle = dict.fromkeys(_OF_REFINEMENT, "refinement: none") if self.refinement == "none" else {}
            if self.interest != "conditional":
                idle |= dict.fromkeys(_OF_CONDITION, f"interest: {self.interest}")
            if self.interest == "pooled":
                idle |= dict.fromkeys(_OF_INTEREST, "interest: pooled")
            if self.condition != "both":
                unused = "behavior_dim" if self.condition == "task" else "task_dim"
                idle |= {unused: f"condition: {self.condition}"}
            defaults = type(self).model_fields
            return {name: why for name, why in idle.items() if getattr(self, name) != defaults[name].default}

    def __init__(self, spec: FeaturesSpec, tasks: tuple[str, ...], config: Config) -> None:
        """See the class."""
        super().__init__(spec, tasks, config)
        check_features(spec, config)
        self.num_tasks = len(tasks)
        self.out_features = sum(spec.widths)
        self.interest: nn.Module | None = _interest(spec, len(tasks), config) if config.interest != "pooled" else None
        self.concat = Concat(spec, tasks, Concat.Config()) if self.interest is None else None
        gates = {"task": len(tasks), "shared": 1, "none": 0}[config.refinement]
        self.refinement = (
            Refinement(
                gates,
                spec.widths,
                granularity=config.granularity,
                squeeze=config.squeeze,
                reduction=config.reduction,
            )
            if gates
            else None
        )

    def forward(self, features: Features) -> Representation:
        """Return ``per_task`` [K, B, D] and their mean; ``shared`` alone where no module tells tasks apart."""
        z = self._columns(features)
        refined: Tensor = z if self.refinement is None else self.refinement(z)
        if refined.dim() == 2 or (refined.shape[0] == 1 and self.num_tasks > 1):
            return Representation(shared=refined.view(-1, self.out_features), features=features)
        return Representation(shared=refined.mean(0), per_task=refined, features=features)

    def for_inference(self) -> DTRN:
        """See `Bottom`: with folded norms."""
        return self.folded()

    def folded(self) -> DTRN:
        """Return a copy for inference, of which the conditional norms are constants."""
        made = copy.deepcopy(self)
        if isinstance(self.interest, Interest):
            made.interest = self.interest.folded()
        return made.eval().requires_grad_(False)

    def _columns(self, features: Features) -> Tensor:
        """Return z_k [K, B, D]; one [B, D] where it is the same for all tasks."""
        if self.concat is not None:
            pooled: Representation = self.concat(features)
            return pooled.shared
        assert self.interest is not None
        interests: Tensor = self.interest(features)
        if interests.shape[0] == 1:
            return side_by_side(features, interests.unbind())
        parts = torch.cat([features.fields[f.name] for f in features.spec.fields] or [features.dense[:, :0]], dim=1)
        tasks = (interests.shape[0], -1, -1)
        return torch.cat([parts.expand(*tasks), interests, features.dense.expand(*tasks)], dim=2)


def _interest(spec: FeaturesSpec, num_tasks: int, config: DTRN.Config) -> Interest:
    width, norms = spec.sequences[0].dim, 2 * config.layers
    return Interest(
        spec.sequences,
        HyperNetwork(
            num_tasks if config.condition != "behavior" else 1,
            [s.behavior or s.name for s in spec.sequences],
            norms,
            width,
            condition=config.condition,
            task_dim=config.task_dim,
            behavior_dim=config.behavior_dim,
            hidden=config.hyper,
        )
        if config.interest == "conditional"
        else PlainNorms(len(spec.sequences), norms, width),
        layers=config.layers,
        heads=config.heads,
        hidden=config.ffn * width,
        positions=config.positions,
        to_target=config.pool == "target",
    )
