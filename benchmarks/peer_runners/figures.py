"""Figures from the results: rates, medians with their range, ratios within one repeat, and the aims."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peer_runners.environments import OURS
from benchmarks.peer_runners.plan import Record

Measure = Callable[[Record], float]


def training_rate(record: Record) -> float:
    """Return samples/s of training alone."""
    return float(record["train_rows"] / record["train_seconds"])


def job_rate(record: Record) -> float:
    """Return samples/s of the job: rows trained, over the seconds of reading, training, and evaluating."""
    seconds = record["read_seconds"] + record["train_seconds"] + record["evaluate_seconds"]
    return float(record["train_rows"] / seconds)


def rate_after_imports(record: Record) -> float:
    """Return samples/s from the end of the imports to the metrics: the job and the building of the model."""
    return float(record["train_rows"] / (record["process_seconds"] - record["import_seconds"]))


def process_rate(record: Record) -> float:
    """Return samples/s from the start of the process to the metrics."""
    return float(record["train_rows"] / record["process_seconds"])


def memory(record: Record) -> float:
    """Return the peak resident memory, MiB."""
    return float(record["peak_mib"])


def mean_auc(record: Record) -> float:
    """Return the mean of the tasks' AUCs."""
    return statistics.fmean(record["auc"].values())


@dataclass(frozen=True)
class Range:
    """A median and the range around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Return the range of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, spec: str) -> str:
        """Return ``median (low..high)``."""
        return f"{self.median:{spec}} ({self.low:{spec}}..{self.high:{spec}})"


def by_repeat(records: Sequence[Record], contender: str) -> dict[int, Record]:
    """Return repeat -> result of a contender; runs that failed are left out."""
    return {r["repeat"]: r for r in records if r["contender"] == contender and "error" not in r}


def compare(
    records: Sequence[Record],
    peer: str,
    measure: Measure,
    how: Callable[[float, float], float] = lambda ours, peers: ours / peers,
) -> Range | None:
    """Return ours against a peer, repeat by repeat; None where no repeat has both.

    Args:
        records: of one job.
        peer: its name.
        measure: of one result.
        how: takes (ours, the peer's); by default their ratio.
    """
    ours, theirs = by_repeat(records, OURS), by_repeat(records, peer)
    both = sorted(ours.keys() & theirs.keys())
    return Range.of([how(measure(ours[r]), measure(theirs[r])) for r in both]) if both else None


def fastest_peer(records: Sequence[Record]) -> str | None:
    """Return the peer with the highest median rate of the job; None where no peer finished."""
    peers = {r["contender"] for r in records if r["contender"] != OURS and "error" not in r}
    rates = {p: statistics.median(job_rate(r) for r in by_repeat(records, p).values()) for p in sorted(peers)}
    return max(rates, key=lambda p: rates[p]) if rates else None


@dataclass(frozen=True)
class Aim:
    """What ours is to reach against the fastest peer.

    Attributes:
        speed: least ratio of the job's samples/s.
        memory: largest share of the peer's peak memory.
        auc: mean AUC at least the peer's.
    """

    speed: float
    memory: float | None = None
    auc: bool = False

    def text(self) -> str:
        """Return the aim in words."""
        memory = [] if self.memory is None else [f"<= {self.memory:g} x memory"]
        return ", ".join([f">= {self.speed:g} x", *memory, *(["AUC not lower"] if self.auc else [])])

    def misses(self, records: Sequence[Record], peer: str) -> list[str]:
        """Return what is not reached."""
        speed, share = compare(records, peer, job_rate), compare(records, peer, memory)
        lead = compare(records, peer, mean_auc, lambda ours, theirs: ours - theirs)
        if speed is None or share is None or lead is None:
            return ["no run to compare with"]
        missed = [] if speed.median >= self.speed else ["speed"]
        missed += ["memory"] if self.memory is not None and share.median > self.memory else []
        return missed + (["AUC"] if self.auc and lead.median < 0 else [])


AIMS: Mapping[tuple[str, str], Aim] = {
    ("small", "mmoe"): Aim(1.5),
    ("large", "mmoe"): Aim(10.0, memory=0.5, auc=True),
    **{("small", model): Aim(1.2) for model in ("ple", "esmm", "shared_bottom")},
    **{("large", model): Aim(8.0) for model in ("ple", "esmm", "shared_bottom")},
}
