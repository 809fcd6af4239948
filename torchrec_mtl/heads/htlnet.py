"""HTLNet ("Touch the Core", RecSys 2024, arXiv 2403.17442): label information is passed down a funnel of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import Config as BaseConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.layers import MLP, Norm
from torchrec_mtl.noise import Noise
from torchrec_mtl.widths import full

# Shapes: B batch, D representation, H first tower width, L label embedding, n preceding tasks.

StopGradient = Literal["source", "leu_output", "fused", "none"]


class Temperature(BaseConfig):
    """Temperature of the label embedding unit: from ``start`` down to ``end``."""

    schedule: Literal["fraction", "steps"] = "fraction"
    """fraction: exponential, reaching ``end`` after ``over`` of training. steps: times ``rate`` every ``every`` steps,
    the schedule as published, which leaves short trainings near ``start``."""
    start: PositiveFloat = 10.0
    end: PositiveFloat = 0.5
    over: Annotated[float, Field(gt=0, le=1)] = 0.8
    rate: Annotated[float, Field(gt=0, le=1)] = 0.9
    every: PositiveInt = 5000

    def at(self, fraction: float, step: int) -> float:
        """Return the temperature after ``fraction`` of training, at ``step``."""
        if self.schedule == "steps":
            return max(self.start * self.rate ** (step // self.every), self.end)
        return float(self.start * (self.end / self.start) ** min(fraction / self.over, 1.0))


class LabelEmbeddingUnit(nn.Module):
    """Embedding of a label sampled from its predicted distribution (Section "LEU").

    ``w = sigmoid((logit + e) / tau)`` with ``e ~ Logistic(0, 1)`` is the binary Gumbel-softmax, exactly; the result is
    ``[w, 1 - w] E``. True labels are not fed: they are unknown when serving.
    """

    def __init__(self, label_dim: int, mode: Literal["gumbel", "tempered", "raw"]) -> None:
        """Build with an embedding [2, L], row 0 for label 1."""
        super().__init__()
        self.mode = mode
        self.embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2, label_dim)))

    def forward(self, logit: Tensor, tau: Tensor, uniform: Tensor | None) -> Tensor:
        """Return [B, L].

        Args:
            logit: [B].
            tau: temperature.
            uniform: [B] in (0, 1), from which the logistic noise is made; None: no noise.
        """
        if self.mode == "raw":
            weight = torch.sigmoid(logit)
        else:
            noisy = logit if uniform is None else logit + torch.logit(uniform)
            weight = torch.sigmoid(noisy / tau)
        weight = weight.unsqueeze(1)
        return weight * self.embedding[0] + (1 - weight) * self.embedding[1]


class InformationFusionUnit(nn.Module):
    """Attention over what the preceding tasks pass on (Eq. 13, 14).

    ``sum_i softmax_i(<h2 x_i, h3 x_i> / sqrt(H)) h1 x_i``, with affine maps h1, h2, h3 from I to H.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        """Build the three affine maps."""
        super().__init__()
        self.h1 = nn.Linear(in_features, out_features)
        self.h2 = nn.Linear(in_features, out_features)
        self.h3 = nn.Linear(in_features, out_features)

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention [B, n] over x [B, n, I]."""
        scores: Tensor = (self.h2(x) * self.h3(x)).sum(-1) / math.sqrt(self.h1.out_features)
        return torch.softmax(scores, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, H] from x [B, n, I]; with one preceding task this is ``h1 x``."""
        mapped: Tensor = self.h1(x)
        if x.shape[1] == 1:
            return mapped.squeeze(1)
        return (self.weights(x).unsqueeze(2) * mapped).sum(1)


class HTLNet(Head):
    """Towers in causal order; tower t reads the representation and what tasks 1 .. t-1 pass on.

    Under a bottom that makes one representation a task, tower t reads that of task t.

    Args:
        in_features: D.
        outputs: task -> number of logits, in causal order; all but the last have one (binary).
        config: options, see `Config`.

    Example:
        >>> import torch
        >>> head = HTLNet(8, ["click", "long_view", "watch_time"], HTLNet.Config(tower=(16, 8)))
        >>> sorted(head(Representation(torch.zeros(4, 8))).logits)
        ['click', 'long_view', 'watch_time']
    """

    tau: Tensor

    class Config(HeadConfig):
        """Options of ``head: {type: htlnet}``.

        With the defaults, label and task information flow down the funnel; no later loss changes an earlier tower.
        """

        type: str = "htlnet"
        tower: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 64, 32)
        """Widths of each tower; the first hidden layer is the task's representation."""
        norm: Norm = "none"
        label_dim: PositiveInt = 10
        """L."""
        leu: bool = True
        """Pass label embeddings on."""
        leu_mode: Literal["gumbel", "tempered", "raw"] = "gumbel"
        """gumbel: sampled in training, no noise in evaluation; tempered: never noise; raw: the probability itself."""
        ifu_rep: bool = True
        """Pass task representations on."""
        ifu_mode: Literal["attention", "concat"] = "attention"
        """concat: side by side instead of attention (ablation)."""
        stop_gradient_at: StopGradient = "source"
        """source: before the units, so that they still learn; leu_output: after the label embedding, whose table then
        never trains; fused: after fusion, the literal reading, which freezes the units; none: the ablation."""
        temperature: Temperature = Temperature()

        def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
            """The tasks before the last must be binary."""
            early = [t.name for t in tasks[:-1] if t.kind != "binary"]
            if not early:
                return []
            return [
                f"htlnet passes labels of binary tasks down to the last one, the core, but {', '.join(early)} "
                "is a regression before the last task; list the tasks in causal order, the regression last"
            ]

    def __init__(
        self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: Config | None = None
    ) -> None:
        """See the class."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.options = config
        early = list(self.outputs.items())[:-1]
        if wide := [name for name, width in early if width != 1]:
            raise ValueError(f"htlnet needs one logit for each task before the last; {wide} ask for more")
        width = config.tower[0]
        passed = [width] * config.ifu_rep + [config.label_dim] * config.leu
        self.units = nn.ModuleList(LabelEmbeddingUnit(config.label_dim, config.leu_mode) for _ in early if config.leu)
        self.fusions = nn.ModuleList(
            nn.ModuleList(InformationFusionUnit(p, width) for p in passed if config.ifu_mode == "attention")
            for _ in early
        )
        extra = [
            len(passed) * width * (t > 0) if config.ifu_mode == "attention" else sum(passed) * t
            for t in range(self.num_tasks)
        ]
        self.first = nn.ModuleList(MLP(in_features + e, config.tower[:1], norm=config.norm) for e in extra)
        self.rest = nn.ModuleList(MLP(width, config.tower[1:], norm=config.norm) for _ in extra)
        self.last = nn.ModuleList(nn.Linear(config.tower[-1], p) for p in self.outputs.values())
        self.register_buffer("tau", torch.tensor(config.temperature.at(0.0, 0)))

    @property
    def isolates_tasks(self) -> bool:
        """True unless gradients flow back up the funnel (``stop_gradient_at: none``)."""
        return self.options.stop_gradient_at != "none"

    def set_progress(self, fraction: float, step: int) -> None:
        """Set the temperature."""
        self.tau.fill_(self.options.temperature.at(fraction, step))

    def forward(self, representation: Representation) -> HeadOutput:
        """Return logits; the last task's is linear (its loss says what it means)."""
        noise = representation.features.noise if representation.features is not None else None
        logits: dict[str, Tensor] = {}
        reps: list[Tensor] = []
        labels: list[Tensor] = []
        for t, (name, e) in enumerate(zip(self.outputs, self._inputs(representation), strict=True)):
            hidden = self.first[t](torch.cat([*self._fused(t, reps, labels), e], dim=1), representation.valid)
            logit = full(self.last[t](self.rest[t](hidden, representation.valid)))
            logits[name] = logit.squeeze(1) if logit.shape[1] == 1 else logit
            if t + 1 < self.num_tasks:
                self._pass_on(t, name, hidden, logits[name], noise, reps, labels)
        return HeadOutput(logits=logits)

    def _inputs(self, representation: Representation) -> Sequence[Tensor]:
        """Return [B, D] a task."""
        views = representation.per_task
        if views is None:
            return [representation.shared] * self.num_tasks
        # Cut at once: the gradient of a view taken by itself would be as large as that of all.
        return views.unbind() if isinstance(views, Tensor) else views

    def _pass_on(
        self,
        t: int,
        name: str,
        hidden: Tensor,
        logit: Tensor,
        noise: Noise | None,
        reps: list[Tensor],
        labels: list[Tensor],
    ) -> None:
        stop = self.options.stop_gradient_at
        reps.append(hidden.detach() if stop in {"source", "leu_output"} else hidden)
        if not self.options.leu:
            return
        uniform = self._uniform(name, logit, noise)
        label = self.units[t](logit.detach() if stop == "source" else logit, self.tau, uniform)
        labels.append(label.detach() if stop == "leu_output" else label)

    def _uniform(self, name: str, like: Tensor, noise: Noise | None) -> Tensor | None:
        if not self.training or self.options.leu_mode != "gumbel":
            return None
        if noise is not None:
            return noise.uniform(f"htlnet/{name}")
        return torch.rand_like(like).clamp_min_(torch.finfo(like.dtype).tiny)

    def _fused(self, t: int, reps: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        """Return what task t reads besides the representation: at most two tensors [B, H]."""
        if t == 0:
            return []
        sources = [reps] * self.options.ifu_rep + [labels] * self.options.leu
        if self.options.ifu_mode == "concat":
            fused = [x for source in sources for x in source]
        else:
            units = self.fusions[t - 1]
            assert isinstance(units, nn.ModuleList)
            fused = [unit(torch.stack(s, dim=1)) for unit, s in zip(units, sources, strict=True)]
        return [f.detach() for f in fused] if self.options.stop_gradient_at == "fused" else fused
