"""How far tasks share the connections of masked layers: what is kept, shared, private, and used by nobody.

K tasks, L layers of I x H connections, N connections in all; a layer's connections are in row-major [I, H] order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from torchrec_mtl.findings import Finding, MatrixFinding, TableFinding

ALL_LAYERS = "all layers"
ANY_TASK = "(any task)"

_PAIRS_NOTE = (
    "Jaccard: shared over what either task has; 0 where neither has any. At random: of two random masks with the same "
    "densities layer by layer, expected shared connections over expected connections of either; the expectations of "
    "all layers are the sums of the layers'."
)
_KEPT_NOTE = "Density: kept connections over all of the layer. Dead inputs and outputs have no connection left."


@dataclass(frozen=True)
class _Overlap:
    """Counts of one layer or of all; float64, whose whole numbers are exact.

    Attributes:
        name: of the layer.
        size: its connections.
        shared: [K, K], connections that both tasks have.
        expected: [K, K], the same of random masks with these densities layer by layer.
    """

    name: str
    size: int
    shared: Tensor
    expected: Tensor

    @property
    def kept(self) -> Tensor:
        """Connections of each task, [K]."""
        return self.shared.diagonal()

    @property
    def jaccard(self) -> Tensor:
        """Return [K, K]: the diagonal is 1, 0/0 is 0."""
        return self._of_either(self.shared).fill_diagonal_(1.0)

    @property
    def expected_jaccard(self) -> Tensor:
        """Return [K, K] of random masks; the diagonal means nothing."""
        return self._of_either(self.expected)

    def _of_either(self, both: Tensor) -> Tensor:
        either = self.kept[:, None] + self.kept - both
        return both / either.clamp_min(torch.finfo(torch.float64).tiny)


def overlap_findings(
    masks: Tensor, shapes: Sequence[tuple[int, int]], tasks: Sequence[str], layers: Sequence[str]
) -> tuple[Finding, ...]:
    """Return tables of what each task keeps and each pair shares, and a matrix of Jaccard indices a layer.

    With one task there are no pairs and no matrices; with one layer, nothing is said of all layers.

    Args:
        masks: bool [K, N], true where a task has the connection.
        shapes: (I, H) of the layers.
        tasks: K names.
        layers: L names.
    """
    kept = _kept_table(masks, shapes, tasks, layers)
    if len(tasks) == 1:
        return (kept,)
    overlaps = _overlaps(masks, shapes, layers)
    return (_pairs_table(overlaps, tasks), kept, *(_matrix(overlap, tasks) for overlap in overlaps))


def dead_connections(masks: Tensor) -> Tensor:
    """Return bool [N]: connections that no task has; ``masks`` as for `overlap_findings`."""
    return ~masks.any(dim=0)


def _by_layer(masks: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    return torch.split(masks, [math.prod(shape) for shape in shapes], dim=1)


def _overlaps(masks: Tensor, shapes: Sequence[tuple[int, int]], layers: Sequence[str]) -> list[_Overlap]:
    """Count layer by layer, then over all."""
    found = []
    for name, mask in zip(layers, _by_layer(masks, shapes), strict=True):
        of_layer = mask.double()
        shared = (of_layer @ of_layer.T).cpu()
        kept, size = shared.diagonal(), mask.shape[1]
        found.append(_Overlap(name, size, shared, torch.outer(kept, kept) / size))
    if len(found) == 1:
        return found
    shared, expected = (torch.stack(parts).sum(0) for parts in zip(*((o.shared, o.expected) for o in found)))
    return [*found, _Overlap(ALL_LAYERS, masks.shape[1], shared, expected)]


def _pairs_table(overlaps: Sequence[_Overlap], tasks: Sequence[str]) -> TableFinding:
    rows = []
    for overlap in overlaps:
        shared, kept = overlap.shared.long().tolist(), overlap.kept.long().tolist()
        jaccard, expected = overlap.jaccard.tolist(), overlap.expected_jaccard.tolist()
        for i, j in combinations(range(len(tasks)), 2):
            both = shared[i][j]
            only = kept[i] - both, kept[j] - both
            dead = overlap.size - both - sum(only)
            rows.append((overlap.name, f"{tasks[i]}, {tasks[j]}", both, *only, dead, jaccard[i][j], expected[i][j]))
    columns = ("layer", "tasks", "shared", "only first", "only second", "neither", "Jaccard", "at random")
    return TableFinding("Connections that two tasks share", columns, tuple(rows), _PAIRS_NOTE)


def _kept_table(
    masks: Tensor, shapes: Sequence[tuple[int, int]], tasks: Sequence[str], layers: Sequence[str]
) -> TableFinding:
    """What each task has, and with several tasks what any of them has."""
    names = (*tasks, ANY_TASK) if len(tasks) > 1 else tuple(tasks)
    masks = torch.cat([masks, ~dead_connections(masks)[None]])[: len(names)]
    counts = []
    for mask, shape in zip(_by_layer(masks, shapes), shapes, strict=True):
        of_layer = mask.view(-1, *shape)
        dead_inputs, dead_outputs = (~of_layer.any(dim=2)).sum(1), (~of_layer.any(dim=1)).sum(1)
        counts.append(torch.stack([mask.sum(1), dead_inputs, dead_outputs], dim=1))
    sizes, shown = [math.prod(shape) for shape in shapes], list(layers)
    if len(shapes) > 1:
        sizes, shown, counts = [*sizes, sum(sizes)], [*shown, ALL_LAYERS], [*counts, torch.stack(counts).sum(0)]
    rows = tuple(
        (layer, name, kept, kept / size, inputs, outputs)
        for layer, size, count in zip(shown, sizes, counts, strict=True)
        for name, (kept, inputs, outputs) in zip(names, count.tolist(), strict=True)
    )
    columns = ("layer", "task", "kept", "density", "dead inputs", "dead outputs")
    return TableFinding("Connections that each task keeps", columns, rows, _KEPT_NOTE)


def _matrix(overlap: _Overlap, tasks: Sequence[str]) -> MatrixFinding:
    values = tuple(tuple(row) for row in overlap.jaccard.tolist())
    return MatrixFinding(f"Jaccard index, {overlap.name}", tuple(tasks), tuple(tasks), values)
