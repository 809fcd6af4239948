"""NCS4CVR (Xiao et al., arXiv 2008.09872): each task has its own connections within shared layers, found by pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.findings import Finding
from torchrec_mtl.heads.base import Head, HeadOfKinds, HeadOutput, Phase, PhaseEnd
from torchrec_mtl.heads.chain import chain_logits, chain_names, conditional_predictions
from torchrec_mtl.heads.compact import CompactNetwork, compacted
from torchrec_mtl.heads.compact_head import CompactHead
from torchrec_mtl.heads.growth import Growth
from torchrec_mtl.heads.layers import StackedLinear, stacked_linear
from torchrec_mtl.heads.masks import prune, prune_and_grow, rate_of_round, shuffled
from torchrec_mtl.heads.ncs4cvr_config import NCS4CVRConfig
from torchrec_mtl.heads.overlap import overlap_findings
from torchrec_mtl.heads.rounds import Rounds, rounds_table
from torchrec_mtl.heads.subnetworks import SubNetworks
from torchrec_mtl.heads.towers import split_logits
from torchrec_mtl.noise import stable_seed

# Shapes: B batch, K tasks, A tasks computed, N connections of all layers, I input width, H output width, P logits.


class NCS4CVR(HeadOfKinds):
    """Learned sharing of single connections: task k computes ``last_k(f(x; W * M_k))`` in layers W that all share.

    A task's mask M_k is found by iterative magnitude pruning with rewinding: a round trains the task alone under the
    mask so far, the smallest of its weights are pruned, and training rewinds to the start; at last the task takes the
    round whose network scored best on the evaluation data. Then all tasks train together from the same start, each
    under its mask. Connections that masks have in common are shared, those of one mask are private.

    With full masks it is `SharedBottom` with a linear map a task. Biases, tables, and the last maps are never masked.
    Under a bottom that makes one representation a task, x is that of task k.

    Args:
        in_features: D.
        outputs: task -> number of logits.
        config: options.
        binary: names of the binary tasks; None: all are.

    Example:
        >>> head = NCS4CVR(720, ["ctr", "cvr"])
        >>> head.layers.num_connections, [phase.name for phase in head.phases(1)][-2:]
        (532480, ['cvr, round 4', 'joint'])
    """

    Config = NCS4CVRConfig

    def __init__(
        self,
        in_features: int,
        outputs: Mapping[str, int] | Sequence[str],
        config: NCS4CVRConfig | None = None,
        *,
        binary: Sequence[str] | None = None,
    ) -> None:
        """See the class."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config, binary=binary)
        self.options = config
        self.tasks = tuple(self.outputs)
        self.binary = frozenset(self.tasks if binary is None else binary)
        self.chain = chain_names("ncs4cvr", self.outputs, binary) if config.chain else ()
        self.layers = SubNetworks(in_features, config.shared)
        self.last = StackedLinear(self.num_tasks, self.layers.out_features, max(self.outputs.values()))
        for weight in self.last.weight:
            nn.init.xavier_normal_(weight)
        assert self.last.bias is not None, "it is built with one"
        nn.init.zeros_(self.last.bias)
        self.rounds = Rounds(self.num_tasks, self._num_rounds, self.layers.num_connections)
        self.growth = Growth(self.layers.num_connections) if config.grow and self._num_rounds else None
        self.state_kept = tuple(name for name, _ in self.named_buffers())
        self._trials = self._plan_trials()
        self._seed = torch.initial_seed()
        self._growing: int | None = None
        self._computed: tuple[int, ...] = ()
        self._subset: Tensor | None = None
        self.activate(None)

    @property
    def isolates_tasks(self) -> bool:
        """True where each task has its mask: it then has a forward of its own in any case."""
        return self.options.masks in {"own", "random"} and not self.chain

    def forward(self, representation: Representation) -> HeadOutput:
        """Return logits; of the tasks that are not active, zeros."""
        x, tasks = representation.by_task(), self._computed
        index = None if self._subset is None else self._subset.to(x.device)
        if index is not None and x.dim() == 3:
            x = x[index]
        weights = self.layers.masked(self._masks(index))
        if self.growth is not None and self._growing is not None and self.training and torch.is_grad_enabled():
            self.growth.watch(weights, 0 if len(weights[0]) == 1 else tasks.index(self._growing))
        z = self._last(self.layers(x, weights), index)
        names = [self.tasks[k] for k in tasks]
        logits = split_logits(z, {name: self.outputs[name] for name in names})
        chain = [name for name in self.chain if name in logits]
        conditional = torch.stack([logits[name] for name in chain]) if chain else None
        if conditional is not None:
            logits |= zip(chain, chain_logits(conditional)[0], strict=True)
        rows = representation.shared.shape[0]
        logits |= {t: z.new_zeros((rows, p) if p > 1 else rows) for t, p in self.outputs.items() if t not in logits}
        further = {} if conditional is None else conditional_predictions(chain, conditional)
        return HeadOutput(logits={task: logits[task] for task in self.tasks}, predictions=further)

    def _index(self, tasks: Sequence[int]) -> Tensor:
        return torch.tensor(tasks, dtype=torch.long, device=self._device)

    def _masks(self, index: Tensor | None) -> Tensor | None:
        """Return [A, N], [1, N] where all tasks have the same, or None for full ones."""
        if self.options.masks == "dense":
            return None
        return self.rounds.current(self._index([0]) if self.options.masks == "one" else index)

    def _last(self, hidden: Tensor, index: Tensor | None) -> Tensor:
        """Return [A, B, P] for hidden [A, B, H], or [1, B, H] that serves all."""
        every: Sequence[Tensor] = list(self.last.parameters())
        weight, bias = every if index is None else [parameter[index] for parameter in every]
        return stacked_linear(hidden[0] if len(hidden) == 1 else hidden, weight, bias)

    def begin_phase(self, phase: Phase) -> None:
        """Count gradients towards the connections that come back in rounds alone."""
        self._growing = self._trials[phase.name][0][0] if phase.name in self._trials else None

    def activate(self, tasks: Sequence[str] | None) -> None:
        """Compute only these tasks, and those before them in a chain, from now on."""
        wanted = self._with_chain(self.tasks if tasks is None else tasks)
        self._computed = tuple(k for k, task in enumerate(self.tasks) if task in wanted)
        # Made here and not in forward, where each step would wait for the copy to a GPU.
        self._subset = None if len(self._computed) == self.num_tasks else self._index(self._computed)

    def set_progress(self, fraction: float, step: int) -> None:
        """Count the last step's gradients towards the connections that come back."""
        if self.growth is not None:
            self.growth.take()

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Return the warm-up, rounds 0 to R of every task, and the joint phase, in which all epochs are trained."""
        options, found = self.options, []
        if options.warmup_steps:
            found.append(Phase("warm-up", epochs, steps=options.warmup_steps, trial=True, origin=True))
        for name, (tasks, _) in self._trials.items():
            trained = self._trained_with(tasks)
            rewind = options.rewind if found and not found[-1].origin else "none"
            found.append(Phase(name, options.round_epochs, trained, trial=True, rewind=rewind))
        rewind = options.rewind if found and not found[-1].origin else "none"
        return (*found, Phase("joint", epochs, alternate=options.batches == "alternate", rewind=rewind))

    def end_phase(self, phase: Phase, metrics: Mapping[str, Mapping[str, float]]) -> PhaseEnd | None:
        """After a round, note its score and prune; after a task's last one, choose."""
        if phase.name not in self._trials:
            return None
        tasks, number = self._trials[phase.name]
        score = self._score(tasks, metrics)
        self.rounds.score(tasks, number, score)
        name, metric = phase.name.rpartition(", ")[0], self._metric(tasks)
        if self.options.needs_evaluation and not math.isfinite(score):
            raise ValueError(
                f"{phase.name}: {metric} is undefined on data.eval (all labels alike?), and rounds are chosen by it; "
                "take other rows, head.choose_by: loss, or head.choose: last, and start over with --fresh"
            )
        density = self.rounds.density(tasks[0], number)
        text = f"{phase.name}: {density:.1%} of {self.layers.num_connections:,} connections"
        text += f", {metric} {score:.5f}" if math.isfinite(score) else ""
        values = {f"prune/{name}/density": density, f"prune/{name}/{metric}": score}
        if number < self._num_rounds:
            self.rounds.begin(tasks, number + 1, self._pruned(tasks[0], number))
        if number == self._last_trial:
            chosen = self._choose(tasks)
            values |= {f"prune/{name}/chosen": chosen}
            text += f"; {name} takes round {chosen} ({self.rounds.density(tasks[0], chosen):.1%})"
        return PhaseEnd(text, values)

    def update_masks(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        """Return what a batch of the active tasks may change: their last maps and, as configured, their connections."""
        mine = torch.zeros(self.num_tasks, 1, 1, dtype=torch.bool)
        mine[list(self._computed)] = True
        mine = mine.to(self._device)
        masks = [(parameter, mine) for parameter in self.last.parameters()]
        used = self._masks(self._index(self._computed)) if self.options.mask_updates else None
        if used is not None:
            masks += zip(self.layers.weights, self.layers.per_layer(used.any(0)), strict=True)
        return masks

    def findings(self) -> Sequence[Finding]:
        """Return the rounds with their scores, and how far the tasks' connections overlap."""
        if self.options.masks == "dense":
            return ()
        # Row-major [I, H], as the table's inputs and outputs are.
        layers = [layer.transpose(1, 2).flatten(1) for layer in self.layers.per_layer(self.rounds.current().cpu())]
        names = tuple(f"layer {i} ({w} x {h})" for i, (h, w) in enumerate(self.layers.shapes, 1))
        shapes = [(w, h) for h, w in self.layers.shapes]
        table = rounds_table(self.rounds, self._groups, self._metric, shuffled=self.options.masks == "random")
        return (table, *overlap_findings(torch.cat(layers, dim=1), shapes, self.tasks, names))

    def compacted(self, task: str) -> CompactNetwork:
        """Return the network of one task alone, without inputs and units that are dead for it; equal scores.

        Its logits [B, P] for x [B, D] are those before ``chain``.

        Raises:
            ValueError: there is no such task.
        """
        if task not in self.tasks:
            raise ValueError(f"no task is called '{task}'; the tasks are {', '.join(self.tasks)}")
        k = self.tasks.index(task)
        weights = [weight[0] for weight in self.layers.masked(self._masks(self._index([k])))]
        last, bias = (parameter[k, :, : self.outputs[task]] for parameter in self.last.parameters())
        return compacted([*weights, last.t()], [*self.layers.biases, bias[0]])

    def for_inference(self) -> Head:
        """See `Head`: each task's network, compacted; itself where no mask leaves anything out."""
        if self.options.masks == "dense":
            return self
        return CompactHead(self, [self.compacted(task) for task in self.tasks], self.chain)

    @property
    def _device(self) -> torch.device:
        return self.last.weight.device

    @property
    def _num_rounds(self) -> int:
        return 0 if self.options.masks == "dense" else self.options.rounds

    @property
    def _last_trial(self) -> int:
        """The number of the last round to be trained: without a choice, there is no need to score the last mask."""
        return self._num_rounds - (self.options.choose == "last")

    @property
    def _groups(self) -> dict[str, tuple[int, ...]]:
        """Return name -> tasks that share a mask."""
        if self.options.masks == "one":
            return {"all": tuple(range(self.num_tasks))}
        return {task: (k,) for k, task in enumerate(self.tasks)}

    def _plan_trials(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Return phase -> (tasks that share a mask, round)."""
        if self.options.masks == "dense":
            return {}
        rounds = range(self._last_trial + 1)
        return {f"{name}, round {r}": (tasks, r) for name, tasks in self._groups.items() for r in rounds}

    def _trained_with(self, tasks: tuple[int, ...]) -> tuple[str, ...]:
        """Return the tasks themselves; in a chain also those before, without which a product cannot be learned."""
        wanted = self._with_chain([self.tasks[k] for k in tasks])
        return tuple(task for task in self.tasks if task in wanted)

    def _with_chain(self, tasks: Sequence[str]) -> set[str]:
        """Return the tasks and those before them in the chain."""
        reached = max((i for i, name in enumerate(self.chain) if name in tasks), default=-1)
        return {*tasks, *self.chain[: reached + 1]}

    def _metric(self, tasks: tuple[int, ...]) -> str:
        if len(tasks) > 1 or self.options.choose_by == "loss":
            return "loss"
        return "auc" if self.tasks[tasks[0]] in self.binary else "rmse"

    def _score(self, tasks: tuple[int, ...], metrics: Mapping[str, Mapping[str, float]]) -> float:
        """Return the metric, nan without an evaluation; of several tasks the sum of their losses."""
        metric = self._metric(tasks)
        return sum(metrics.get(self.tasks[k], {}).get(metric, float("nan")) for k in tasks)

    @torch.no_grad()
    def _pruned(self, task: int, number: int) -> Tensor:
        """Return the mask [N] of the round to come."""
        options, rate = self.options, rate_of_round(self.options.density, self.options.rounds)
        parts = [self.rounds.of_round(task, number), self.layers.connections().abs()]
        if self.growth is not None:
            parts.append(self.growth.summed.abs())
            self.growth.clear()
        sizes = [self.layers.num_connections] if options.threshold == "global" else self.layers.sizes
        layers = zip(*(torch.split(part, sizes) for part in parts), strict=True)
        return torch.cat(
            [prune_and_grow(m, w, g[0], rate, options.grow) if g else prune(m, w, rate) for m, w, *g in layers]
        )

    def _choose(self, tasks: tuple[int, ...]) -> int:
        options, chosen = self.options, self._num_rounds
        if options.choose != "last":
            candidates = range(0 if options.choose == "any" else 1, self._num_rounds + 1)
            chosen = self.rounds.choose(tasks, candidates, "higher" if self._metric(tasks) == "auc" else "lower")
        if options.masks == "random":
            (k,) = tasks
            seed = stable_seed(self._seed, self.tasks[k])
            self.rounds.begin(tasks, chosen, shuffled(self.rounds.of_round(k, chosen), self.layers.sizes, seed))
        return chosen
