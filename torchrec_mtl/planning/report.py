"""All that `plan` found, in one value, and that value as JSON and back."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from torchrec_mtl.planning.result import Cluster, Plan, Shortage


@dataclass(frozen=True)
class Attempt:
    """A change that was tried.

    Attributes:
        what: in words.
        overrides: ``key.path=value`` for the config, as ``train`` takes them.
        options: of ``plan``, as typed.
        fits: whether a plan was found.
        reason: why not; empty where it fits.
    """

    what: str
    overrides: tuple[str, ...]
    options: tuple[str, ...]
    fits: bool
    reason: str


@dataclass(frozen=True)
class Growth:
    """The estimate on a number of nodes.

    Attributes:
        nodes: number of them.
        ranks: of all nodes.
        batch_per_rank: samples; the global batch stays.
        reason: why there is no plan; empty where there is.
        step_ms: of the slowest rank; None without a plan.
        compute_ms: of that rank.
        comms_ms: of that rank.
        hbm_bytes: of the fullest rank.
        ddr_bytes: of the rank with most in host memory.
        seconds: the planner took.
    """

    nodes: int
    ranks: int
    batch_per_rank: int
    reason: str = ""
    step_ms: float | None = None
    compute_ms: float | None = None
    comms_ms: float | None = None
    hbm_bytes: int | None = None
    ddr_bytes: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """All that the command found.

    Attributes:
        config: the file.
        batch_size: global batch.
        cluster: what was asked.
        plan: for ``cluster``; None where nothing fits there.
        shortage: why not.
        attempts: changes tried, in order of cost.
        changed: plan of the first change that a run can make; None where none fits, or none was needed.
        growth: by number of nodes, where asked; with the change's overrides, where one fits.
        notes: what to know before training.
    """

    config: str
    batch_size: int
    cluster: Cluster
    plan: Plan | None
    shortage: Shortage | None = None
    attempts: tuple[Attempt, ...] = ()
    changed: Plan | None = None
    growth: tuple[Growth, ...] = ()
    notes: tuple[str, ...] = ()


def to_json(report: Report) -> str:
    """Return everything as JSON; bytes, milliseconds, and whole names."""
    return TypeAdapter(Report).dump_json(report, indent=1).decode() + "\n"


def from_json(text: str) -> Report:
    """Read what ``to_json`` wrote."""
    return TypeAdapter(Report).validate_json(text)
