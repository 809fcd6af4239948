"""HoME (Wang et al., "Hierarchy of Multi-Gate Experts", arXiv 2408.05430, 2024): a level of groups, a level of tasks.

The equations are recalled from the paper; the class says which parts are choices of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import Name, did_you_mean
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import HeadConfig, HeadOfKinds, HeadOutput
from torchrec_mtl.heads.expert_sets import ExpertSets
from torchrec_mtl.heads.experts import Gates, mix
from torchrec_mtl.heads.gates import FeatureGates
from torchrec_mtl.heads.layers import Norm, StackedLinear
from torchrec_mtl.heads.towers import Towers
from torchrec_mtl.heads.watched import WatchedGate, numbered_all

# Shapes: B batch, D representation, K tasks, G groups, S sets of experts, n experts of a set, U mixtures, m sets that a
# mixture reads, I input width, H expert width.

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swish": nn.functional.silu, "relu": torch.relu}


class Masked(nn.Module):
    """Mixtures of the sets that a mask lets each of them read, with a self-gate on its own set.

    ``sum_i (g_i + s_i) E_i``: g is a softmax over all experts that are read; s is 0 but for the experts of the own set,
    where it is a sigmoid for one expert and a softmax for several. So the own experts are trained even where g leaves
    them out.

    Args:
        sources: [U][m] the sets that each mixture reads, its own one last.
        num_experts: n.
        in_features: I of what the gates read.
        self_gate: have s.
    """

    sources: Tensor

    def __init__(
        self, sources: Sequence[Sequence[int]], num_experts: int, in_features: int, *, self_gate: bool
    ) -> None:
        """See the class."""
        super().__init__()
        self.num_experts = num_experts
        self.register_buffer("sources", torch.tensor(sources).flatten(), persistent=False)
        self.gates = Gates(len(sources), in_features, len(sources[0]) * num_experts)
        self.own = StackedLinear(len(sources), in_features, num_experts) if self_gate else None

    def forward(self, x: Tensor, values: Tensor) -> Tensor:
        """Return [U, B, H].

        Args:
            x: [U, B, I], or one [B, I] for all mixtures.
            values: [S, n, B, H] of all sets.
        """
        weights = self.gates(x)
        if self.own is not None:
            scores = self.own(x)
            own = torch.sigmoid(scores) if self.num_experts == 1 else torch.softmax(scores, dim=-1)
            others, mine = weights.tensor_split([-self.num_experts], dim=-1)
            weights = torch.cat([others, mine + own], dim=-1)
        read = values.index_select(0, self.sources).view(len(weights), weights.shape[2], *values.shape[2:])
        return mix(weights, read.transpose(1, 2))


class HoME(HeadOfKinds):
    """Normalised experts in two levels, first of groups of like tasks, then of tasks, with gates on what they read.

    From the paper: an expert is ``swish(norm(W x))``; level 1 has a shared set of experts and one a group, a group's
    mixture reads its own set and the shared one, the shared mixture all sets; level 2 has a shared set, one a group and
    one a task, which read level 1's mixture of all, of the group, and of the task's group, and task k's mixture reads
    the shared set, its group's, and its own (hierarchy mask); a set reads its input times ``2 sigmoid(x B A)`` (feature
    gate); the own set is added once more through a gate of its own (self-gate, see `Masked`); the gates of level 2 read
    the mixtures of the group and of all.

    Choices of ours: one feature gate a set, of rank ``rank``, where the paper mixes several; the self-gate reads what
    the gate reads; norm and activation follow every layer of an expert; where a bottom makes one representation a task,
    a group reads the mean of its tasks' (a group of one task: that of the task), and the shared set and the shared
    mixture's gates ``representation.shared``. Since that mixture is of all groups, so are the logits of each task.

    Args:
        in_features: D.
        outputs: task -> number of logits, in causal order; a sequence of names means one each.
        config: options, see `Config`.
        binary: the binary tasks, which by default are one group, and the others another; `create` passes them.

    Example:
        >>> import torch
        >>> head = HoME(8, ["click", "buy", "spend"], HoME.Config(groups=(("click",), ("buy", "spend"))))
        >>> head.group_of
        (0, 1, 1)
    """

    groups: Tensor
    mean: Tensor

    class Config(HeadConfig):
        """Options of ``head: {type: home}``."""

        type: str = "home"
        groups: tuple[Annotated[tuple[Name, ...], Field(min_length=1)], ...] = ()
        """Names of the tasks that belong together, such as [[click, like], [watch_time]]; by default the binary tasks
        are one group and the regressions another."""
        experts: PositiveInt = 1
        """Number of experts of each set, on both levels."""
        meta: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128,)
        """Widths of the layers of level 1's experts."""
        expert: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        """Widths of the layers of level 2's experts."""
        tower: tuple[PositiveInt, ...] = (64,)
        """Widths of each task's layers."""
        norm: Norm = "batch"
        """Experts without a norm are an ablation."""
        activation: Literal["swish", "relu"] = "swish"
        """What follows each layer of the experts; relu is an ablation."""
        feature_gate: bool = True
        """Gate what each set reads."""
        rank: PositiveInt = 16
        """Rank of the feature gates."""
        self_gate: bool = True
        """Add the own experts of a group or task once more, through a gate of their own."""

        def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
            """Groups must name every task once."""
            names, grouped = [t.name for t in tasks], [name for group in self.groups for name in group]
            if not grouped:
                return []
            unknown = [n for n in dict.fromkeys(grouped) if n not in names]
            return [
                *(f"groups: no task is called '{n}'.{did_you_mean(n, names)}" for n in unknown),
                *(
                    f"groups: task '{n}' is named {grouped.count(n)} times; name every task once, or leave groups out"
                    for n in names
                    if grouped.count(n) != 1
                ),
            ]

    def __init__(
        self,
        in_features: int,
        outputs: Mapping[str, int] | Sequence[str],
        config: Config | None = None,
        *,
        binary: Collection[str] = (),
    ) -> None:
        """See the class."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.group_of = _group_of(tuple(self.outputs), config.groups, binary)
        count, groups, wide = config.experts, len(set(self.group_of)), config.meta[-1]
        act, tasks = _ACTIVATIONS[config.activation], self.num_tasks
        self.register_buffer("groups", torch.tensor(self.group_of), persistent=False)
        member = nn.functional.one_hot(self.groups, groups).T.float()
        self.register_buffer("mean", member / member.sum(1, keepdim=True), persistent=False)  # [G, K]
        sets = (1 + groups, 1 + groups + tasks)
        gated = config.feature_gate
        self.meta_inputs = FeatureGates(sets[0], in_features, config.rank) if gated else None
        self.meta = ExpertSets(sets[0], count, in_features, config.meta, norm=config.norm, activation=act)
        self.inputs = FeatureGates(sets[1], wide, config.rank) if gated else None
        self.experts = ExpertSets(sets[1], count, wide, config.expert, norm=config.norm, activation=act)
        of_groups, of_all = [(0, 1 + g) for g in range(groups)], (*range(1, 1 + groups), 0)
        of_tasks = [(0, 1 + g, 1 + groups + k) for k, g in enumerate(self.group_of)]
        self.group_mix = Masked(of_groups, count, in_features, self_gate=config.self_gate)
        self.shared_mix = Masked([of_all], count, in_features, self_gate=config.self_gate)
        self.task_mix = Masked(of_tasks, count, 2 * wide, self_gate=config.self_gate)
        self.towers = Towers(self.experts.out_features, config.tower, self.outputs, norm=config.norm)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        valid = representation.valid
        shared, groups = self._level_1(representation)
        own = groups.index_select(0, self.groups)
        x = torch.cat([shared, groups, own])
        values = self.experts(x if self.inputs is None else self.inputs(x), valid)
        mixed = self.task_mix(torch.cat([own, shared.expand_as(own)], dim=2), values)
        return HeadOutput(logits=self.towers.logits(mixed, valid))

    def watched_gates(self) -> Sequence[WatchedGate]:
        """Return the gates of the groups, level 1, and of the tasks, level 2."""
        tasks, count = tuple(self.outputs), self.meta.num_experts
        members = [[task for task, g in zip(tasks, self.group_of) if g == group] for group in sorted({*self.group_of})]
        groups = tuple(f"group of {', '.join(names)}" for names in members)
        note = "What the self-gate adds to the own experts is not in it."
        return (
            WatchedGate(
                "Use of experts, level 1",
                self.group_mix.gates,
                groups,
                numbered_all(("shared", "own"), count),
                task_rows=0,
                note=note,
            ),
            WatchedGate(
                "Use of experts, level 2",
                self.task_mix.gates,
                tasks,
                numbered_all(("shared", "of the group", "own"), count),
                note=note,
            ),
        )

    def _level_1(self, representation: Representation) -> tuple[Tensor, Tensor]:
        """Return the mixtures of all sets [1, B, H] and of the groups [G, B, H]."""
        x, of_groups = representation.shared, representation.by_task()
        if of_groups.dim() == 3:
            of_groups = torch.tensordot(self.mean, of_groups, dims=1)
            x = torch.cat([x.unsqueeze(0), of_groups])
        values = self.meta(x if self.meta_inputs is None else self.meta_inputs(x), representation.valid)
        return self.shared_mix(representation.shared, values), self.group_mix(of_groups, values)


def _group_of(tasks: Sequence[str], groups: Sequence[Sequence[str]], binary: Collection[str]) -> tuple[int, ...]:
    """Return the number of each task's group; without groups: binary tasks, and the others."""
    if not groups:
        kinds = [[t for t in tasks if (t in binary) == kind] for kind in (True, False)]
        groups = [kind for kind in kinds if kind]
    numbers = {name: number for number, group in enumerate(groups) for name in group}
    return tuple(numbers[name] for name in tasks)
