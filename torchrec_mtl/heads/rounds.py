"""What iterative pruning has found so far: each round's mask and score by task, and the mask that a task uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.findings import TableFinding
from torchrec_mtl.heads.masks import pack, unpack

# Shapes: K tasks, A of them, R rounds, N connections of all layers.


class Rounds(nn.Module):
    """Buffers that a checkpoint carries; round 0 is the full network.

    Args:
        num_tasks: K.
        num_rounds: R.
        num_connections: N.

    Attributes:
        masks: uint8 [K, R + 1, ceil(N / 8)], a bit a connection; those of rounds to come are 0.
        scores: [K, R + 1] on the evaluation data; infinite where there is none.
        used: [K], the round whose mask the task uses now.
    """

    masks: Tensor
    scores: Tensor
    used: Tensor

    def __init__(self, num_tasks: int, num_rounds: int, num_connections: int) -> None:
        """See the class."""
        super().__init__()
        self.num_connections, self.num_rounds = num_connections, num_rounds
        full = pack(torch.ones(num_connections, dtype=torch.bool))
        masks = torch.zeros(num_tasks, num_rounds + 1, len(full), dtype=torch.uint8)
        masks[:, 0] = full
        self.register_buffer("masks", masks)
        self.register_buffer("scores", torch.full((num_tasks, num_rounds + 1), torch.inf, dtype=torch.float64))
        self.register_buffer("used", torch.zeros(num_tasks, dtype=torch.long))

    def current(self, tasks: Tensor | None = None) -> Tensor:
        """Return bool [A, N], what each of ``tasks`` [A] (None: all) uses now."""
        used = self.used if tasks is None else self.used[tasks]
        tasks = torch.arange(len(used), device=used.device) if tasks is None else tasks
        return unpack(self.masks[tasks, used], self.num_connections)

    def of_round(self, task: int, number: int) -> Tensor:
        """Return bool [N]."""
        return unpack(self.masks[task, number], self.num_connections)

    def score(self, tasks: Sequence[int], number: int, score: float) -> None:
        """Note what the tasks' networks of a round are worth; nan: nobody knows."""
        self.scores[list(tasks), number] = score if math.isfinite(score) else math.inf

    def begin(self, tasks: Sequence[int], number: int, mask: Tensor) -> None:
        """Have the tasks use a mask [N], which is that of round ``number`` from now on."""
        self.masks[list(tasks), number] = pack(mask)
        self.used[list(tasks)] = number

    def choose(self, tasks: Sequence[int], candidates: Sequence[int], better: Literal["higher", "lower"]) -> int:
        """Have the tasks use the best of some rounds, the first of equals, and return its number.

        Raises:
            ValueError: none of them has a score.
        """
        known = self.scores[tasks[0], list(candidates)].cpu()
        if not bool(known.isfinite().any()):
            raise ValueError(f"none of the rounds {list(candidates)} has a score to choose by")
        worth = torch.where(known.isfinite(), known if better == "higher" else -known, -torch.inf)
        number = candidates[int(worth.argmax())]
        self.used[list(tasks)] = number
        return number

    def made(self, task: int) -> list[tuple[int, float, float, bool]]:
        """Return number, density, score (nan where there is none), and whether it is used, of the rounds so far."""
        densities = [self.density(task, number) for number in range(self.num_rounds + 1)]
        scores, used = self.scores[task].tolist(), int(self.used[task])
        return [
            (number, density, score if math.isfinite(score) else math.nan, number == used)
            for number, (density, score) in enumerate(zip(densities, scores, strict=True))
            if density > 0
        ]

    def density(self, task: int, number: int) -> float:
        """Return the share of the connections that a round's mask has."""
        return float(self.of_round(task, number).float().mean())


def rounds_table(
    rounds: Rounds, groups: Mapping[str, tuple[int, ...]], metric: Callable[[tuple[int, ...]], str], *, shuffled: bool
) -> TableFinding:
    """Return all rounds with their scores.

    Args:
        rounds: what was found.
        groups: name -> the tasks that are pruned together.
        metric: name of what the rounds of these tasks are chosen by.
        shuffled: whether connections were shuffled after a round was chosen.
    """
    rows = [
        (name, number, density, metric(tasks), score, "taken" if used else "")
        for name, tasks in groups.items()
        for number, density, score, used in rounds.made(tasks[0])
    ]
    return TableFinding(
        "Rounds of pruning",
        ("task", "round", "density", "metric", "score", ""),
        tuple(rows),
        "density: share of the connections left; score: of the round's network, on the evaluation data"
        + (", before the connections taken were shuffled." if shuffled else "."),
    )
