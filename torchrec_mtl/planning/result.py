"""What a plan is: plain frozen values, in bytes and milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GIB = 1024**3
DEFAULT_DDR_GIB = 128.0
"""Host memory of one rank where none is named: TorchRec's own default."""


@dataclass(frozen=True)
class Cluster:
    """The machines that a plan is for.

    Attributes:
        nodes: number of them.
        gpus: GPUs of a node; on the CPU, ranks of a node.
        device: "cuda" or "cpu".
        hbm_gib: memory of one GPU, GiB; None on the CPU.
        ddr_gib: host memory of a node, GiB, which its ranks share equally.
    """

    nodes: int
    gpus: int
    device: str
    hbm_gib: float | None
    ddr_gib: float

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.nodes * self.gpus

    @property
    def hbm_bytes(self) -> int | None:
        """Bytes of one GPU; None on the CPU."""
        return None if self.hbm_gib is None else int(self.hbm_gib * GIB)

    @property
    def ddr_bytes(self) -> int:
        """Bytes of host memory of one rank."""
        return int(self.ddr_gib * GIB) // self.gpus

    def __str__(self) -> str:
        noun = "node" if self.nodes == 1 else "nodes"
        if self.hbm_gib is None:
            return f"{self.nodes} {noun} x {self.gpus} CPU ranks, {self.ddr_gib:g} GiB a node"
        return (
            f"{self.nodes} {noun} x {self.gpus} GPUs of {self.hbm_gib:g} GiB, {self.ddr_gib:g} GiB host memory a node"
        )


@dataclass(frozen=True)
class Cost:
    """What TorchRec's estimator says a step costs, in milliseconds: an estimate for its default hardware.

    Attributes:
        fwd_compute: lookups.
        fwd_comms: exchange of what was looked up.
        bwd_compute: gradients and update of the rows.
        bwd_comms: exchange of gradients.
        prefetch: rows fetched from host memory into the cache.
    """

    fwd_compute: float = 0.0
    fwd_comms: float = 0.0
    bwd_compute: float = 0.0
    bwd_comms: float = 0.0
    prefetch: float = 0.0

    @property
    def total(self) -> float:
        """All parts one after the other, as the planner reckons."""
        return self.compute + self.comms

    @property
    def compute(self) -> float:
        """Lookups, updates, and prefetch."""
        return self.fwd_compute + self.bwd_compute + self.prefetch

    @property
    def comms(self) -> float:
        """Both exchanges."""
        return self.fwd_comms + self.bwd_comms

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.fwd_compute + other.fwd_compute,
            self.fwd_comms + other.fwd_comms,
            self.bwd_compute + other.bwd_compute,
            self.bwd_comms + other.bwd_comms,
            self.prefetch + other.prefetch,
        )


@dataclass(frozen=True)
class ShardPlan:
    """A part of a table on a rank.

    Attributes:
        rank: where it lies.
        rows: of the part.
        columns: of the part.
        hbm_bytes: of the GPU: rows, optimizer state, cache, and a step's ids and vectors.
        ddr_bytes: of the host, likewise.
        lookups: ids a step that are looked up in it.
        cost: of a step.
    """

    rank: int
    rows: int
    columns: int
    hbm_bytes: int
    ddr_bytes: int
    lookups: float
    cost: Cost


@dataclass(frozen=True)
class TablePlan:
    """How a table is cut.

    Attributes:
        name: of the table; ``video@click`` is the copy of a task.
        rows: of the whole table.
        dim: of the whole table.
        sharding: sharding type.
        kernel: "fused" (GPU, or host memory on the CPU), "fused_uvm_caching" (host memory, cached on the GPU), or
            "fused_uvm" (host memory).
        shards: its parts; those without rows are left out.
    """

    name: str
    rows: int
    dim: int
    sharding: str
    kernel: str
    shards: tuple[ShardPlan, ...]


@dataclass(frozen=True)
class RankPlan:
    """What a rank holds and does.

    Attributes:
        rank: from 0.
        node: from 0.
        tables: whole names, in the order of the tables; each once.
        shards: number of parts.
        hbm_bytes: of the GPU that all parts take.
        ddr_bytes: of the host.
        lookups: ids a step.
        cost: of a step.
    """

    rank: int
    node: int
    tables: tuple[str, ...]
    shards: int
    hbm_bytes: int
    ddr_bytes: int
    lookups: float
    cost: Cost


@dataclass(frozen=True)
class Summary:
    """How even the ranks are.

    Attributes:
        step_ms: estimate of the slowest rank; the planner makes it small.
        time_imbalance: the slowest rank over the mean.
        hbm_imbalance: GPU memory of the fullest rank over the mean.
        ddr_imbalance: host memory of the fullest rank over the mean.
    """

    step_ms: float
    time_imbalance: float
    hbm_imbalance: float
    ddr_imbalance: float

    @classmethod
    def of(cls, ranks: Sequence[RankPlan]) -> Summary:
        """Summarise at least one rank."""
        times = [r.cost.total for r in ranks]
        return cls(
            step_ms=max(times),
            time_imbalance=imbalance(times),
            hbm_imbalance=imbalance([r.hbm_bytes for r in ranks]),
            ddr_imbalance=imbalance([r.ddr_bytes for r in ranks]),
        )


@dataclass(frozen=True)
class Plan:
    """A plan that fits.

    Attributes:
        cluster: what it is for.
        batch_per_rank: samples of a step on one rank.
        hbm_available: bytes of a GPU that tables may take, after what is reserved; 0 on the CPU.
        ddr_available: bytes of host memory of a rank.
        dense_bytes: of the dense part on every rank: weights, gradients, and optimizer; not in the ranks' figures.
        tables: in the order of the config.
        ranks: all of them, in order.
        summary: of the ranks.
        seconds: the planner took.
        proposals: it judged.
    """

    cluster: Cluster
    batch_per_rank: int
    hbm_available: int
    ddr_available: int
    dense_bytes: int
    tables: tuple[TablePlan, ...]
    ranks: tuple[RankPlan, ...]
    summary: Summary
    seconds: float
    proposals: int


@dataclass(frozen=True)
class TooLarge:
    """A table that no rank of its own can hold, however it may be cut.

    Attributes:
        table: its name.
        sharding: types it may be cut by.
        hbm_bytes: smallest largest part in GPU memory; None where it may not lie there.
        ddr_bytes: smallest largest part in host memory; None where it may not lie there.
    """

    table: str
    sharding: tuple[str, ...]
    hbm_bytes: int | None
    ddr_bytes: int | None


@dataclass(frozen=True)
class Shortage:
    """No plan was found.

    Attributes:
        cluster: what was asked.
        hbm_available: bytes of a GPU that tables may take.
        ddr_available: bytes of host memory of a rank.
        needed_bytes: rows and optimizer state of all tables.
        largest: the largest tables with the bytes of one copy, for a look at where the memory goes.
        too_large: tables that fit on no rank by themselves.
        seconds: the planner took; 0 where the sizes alone say that nothing can fit.
    """

    cluster: Cluster
    hbm_available: int
    ddr_available: int
    needed_bytes: int
    largest: tuple[tuple[str, int], ...]
    too_large: tuple[TooLarge, ...]
    seconds: float

    @property
    def capacity(self) -> int:
        """Bytes that all ranks have for tables, GPU and host memory."""
        return self.cluster.ranks * (self.hbm_available + self.ddr_available)


def imbalance(values: Sequence[float]) -> float:
    """Return the largest over the mean; 1 where all are 0.

    Example:
        >>> imbalance([1.0, 3.0])
        1.5
    """
    return max(values) * len(values) / sum(values) if sum(values) else 1.0
