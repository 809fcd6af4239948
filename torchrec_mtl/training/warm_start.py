"""A new run that starts from the tables and the dense part of an earlier one (``init_from``)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from rich.console import Console

from torchrec_mtl import atomic
from torchrec_mtl.collectives import rank
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.arrow import is_list, is_string
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.initial import local_shards
from torchrec_mtl.objective import Objective
from torchrec_mtl.training.checkpoint import CheckpointError, Checkpoints
from torchrec_mtl.training.checkpoint_files import damaged_files
from torchrec_mtl.training.distributed import on_rank_0
from torchrec_mtl.training.matching import Match, match, state_fits
from torchrec_mtl.training.rewind import save_origin
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.state_names import MODEL, read_names, table_of
from torchrec_mtl.training.stored import StoredTensors
from torchrec_mtl.training.stored_run import StoredRun

if TYPE_CHECKING:
    from torchrec_mtl.training.session import Session

FILE = "init_from.json"


@dataclass(frozen=True)
class WarmStart:
    """What a run started from.

    Attributes:
        source: the checkpoint.
        match: what was taken of it.
        states: the optimizers' states that were taken, ``video.momentum1``.
        notes: where the two runs differ so that a name or a shape may mean something else.
        updates: steps that the tables' optimizer has seen: 0, or those of the source where its state was taken.
    """

    source: StoredRun
    match: Match
    states: tuple[str, ...]
    notes: tuple[str, ...]
    updates: int

    def save(self, path: Path) -> None:
        """Write as JSON."""
        found = self.match
        content = {
            "checkpoint": str(self.source.path),
            "step": self.source.step,
            "tables": sorted(found.tables),
            "grown": {table: {"kept": kept, "new": new} for table, (kept, new) in found.grown.items()},
            "dense": sorted(name for name in found.taken if table_of(name) is None),
            "states": self.states,
            "fresh": found.fresh,
            "not_used": found.unused,
            "notes": self.notes,
        }
        atomic.write_text(path, json.dumps(content, indent=2) + "\n")

    def lines(self, path: Path) -> list[str]:
        """Return what people are told; ``path`` holds the rest."""
        found, tables = self.match, self.match.tables
        dense = len(found.taken) - len(tables)
        states = f", {len(self.states)} states of optimizers" if self.states else ""
        grown = [f"table {t} keeps {kept:,} rows and gets {new:,} new ones" for t, (kept, new) in found.grown.items()]
        fresh = {table: why for name, why in found.fresh.items() if (table := table_of(name)) is not None}
        return [
            f"starting from {self.source.path}: {len(tables)} tables, {dense} dense tensors{states}; "
            f"{len(found.fresh)} tensors are fresh, {len(found.unused)} of it not used ({path})",
            *(f"  {line}" for line in grown),
            *(f"  table {table} is fresh: {why}" for table, why in fresh.items()),
            *(f"  note: {note}" for note in self.notes),
        ]


def find_source(config: RunConfig, *, fresh: bool) -> StoredRun | None:
    """Return what the run starts from, None where it goes on or starts from its seed; on all ranks together.

    Args:
        config: the run.
        fresh: what ``run_dir`` holds will be forgotten.

    Raises:
        ValueError: ``init_from`` is no run.
        CheckpointError: it has no such checkpoint.
    """
    wanted = config.init_from

    def find() -> StoredRun | None:
        if wanted is None or (not fresh and Checkpoints(config.run_dir).index()):
            return None
        try:
            return StoredRun.find(wanted.run, wanted.checkpoint)
        except ValueError as error:
            raise ValueError(f"init_from.run: {error}") from None

    return on_rank_0(find)


def begin_from(
    source: StoredRun,
    session: Session,
    state: TrainState,
    *,
    checkpoints: Checkpoints,
    files: Sequence[DataFile],
    console: Console,
) -> None:
    """Start a new run from an earlier one, say so, and leave ``init_from.json``; on all ranks together.

    Args:
        source: from `find_source`.
        session: as built, before its first step.
        state: of the new run; changed in place.
        checkpoints: of the new run; they get what a head that rewinds to step 0 goes back to.
        files: training data, which say whose ids are hashed.
        console: for rank 0.

    Raises:
        ValueError: nothing fits.
        CheckpointError: the checkpoint is damaged, on all ranks.
    """
    done = warm_start(session, source, hashed=hashed_tables(session.config, files))
    state.updates = state.origin_updates = done.updates
    if any(phase.rewind != "none" for phase in session.objective.head.phases(session.config.train.epochs)):
        save_origin(session, checkpoints, tables=True)
    path = Path(session.config.run_dir) / FILE
    on_rank_0(lambda: done.save(path))
    for line in done.lines(path) if rank() == 0 else ():
        console.print(line, highlight=False, soft_wrap=True)


def warm_start(session: Session, source: StoredRun, *, hashed: Collection[str]) -> WarmStart:
    """Overwrite a fresh session with what fits of an earlier run, on all ranks together; each reads what it holds.

    Args:
        session: as built, before its first step.
        source: from `find_source`.
        hashed: tables whose ids are hashed.

    Raises:
        ValueError: nothing fits.
        CheckpointError: the checkpoint is damaged, on all ranks.
    """
    if problems := damaged_files(source.path, source.checksums):
        raise CheckpointError(f"init_from: {source.path} is damaged: {problems[0]}; take another checkpoint or run")
    with _on_all_ranks():
        stored = StoredTensors(source.path)
    model = session.model.state_dict()
    names = read_names(stored.shapes)
    found = match(
        {name: tuple(value.size()) for name, value in model.items()},
        {name.parameter: tuple(stored.shapes[name.stored]) for name in names if name.state is None},
        own=_own(session.objective),
        hashed=hashed,
    )
    if not found.taken:
        why = "; ".join(f"{name}: {why}" for name, why in list(found.fresh.items())[:3])
        raise ValueError(f"init_from: nothing in {source.path} fits this run ({why}); remove init_from, or mend names")
    wanted = session.config.init_from
    with_states = wanted is not None and wanted.optimizers
    states, notes = _copy(session, model, stored, found, source if with_states else None)
    updates = source.updates if any(s.split(".")[0] in found.tables for s in states) else 0
    session.optimizers.set_step(updates)
    return WarmStart(source, found, states, (*_differences(session.config, source), *notes), updates)


def hashed_tables(config: RunConfig, files: Sequence[DataFile]) -> frozenset[str]:
    """Return the tables that some feature reads with hashed ids; strings are hashed whatever the config says."""
    found = set()
    for feature in (*config.features.pooled, *config.features.unpooled):
        kind = files[0].schema.field(feature.source).type
        if feature.encode == "hash" or is_string(kind.value_type if is_list(kind) else kind):
            found.add(feature.table)
    return frozenset(found)


def _own(objective: Objective) -> dict[str, str]:
    """Return what a new run keeps of its own, with the reason."""
    kept = {f"head.{name}" for name in objective.head.state_kept}
    found = {}
    for name, _ in objective.named_buffers():
        if name.startswith("losses."):
            found[name] = "the scale of this run's labels"
        elif name.startswith("rule."):
            found[name] = "the gradient rule's memory of its run"
        elif name in kept:
            found[name] = "what the head found in its run"
    return {f"objective.{name}": why for name, why in found.items()}


def _copy(
    session: Session, model: Mapping[str, Any], stored: StoredTensors, found: Match, states_of: StoredRun | None
) -> tuple[tuple[str, ...], list[str]]:
    """Read this rank's parts; return the states that any rank took, and why others were not taken."""
    states, notes = list[str](), list[str]()
    with _on_all_ranks():
        for name, source in found.taken.items():
            _fill(stored, f"{MODEL}{source}", model[name])
        if states_of is not None:
            states, notes = _copy_states(session, stored, found, states_of)
    of_ranks: list[tuple[list[str], list[str]]] = [([], [])] * dist.get_world_size()
    dist.all_gather_object(of_ranks, (states, notes))
    session.forget_cached_rows()
    taken, said = ({line for part in of_ranks for line in part[which]} for which in (0, 1))
    return tuple(sorted(taken)), sorted(said)


def _copy_states(
    session: Session, stored: StoredTensors, found: Match, source: StoredRun
) -> tuple[list[str], list[str]]:
    optim, taken, notes = session.config.optim, [], []
    same = {}
    for is_table, part, here in ((True, "sparse", optim.sparse.type), (False, "dense", optim.dense.type)):
        there = source.section("optim", part, "type")
        same[is_table] = here == there
        if here != there:
            notes.append(f"optim.{part}.type is {here}, in the run {there}: its states are fresh")
    by_place = {(name.parameter, name.state): name for name in read_names(stored.shapes)}
    model = session.model.state_dict()
    for parameter, states in session.optimizers.state_dict()["state"].items():
        table, origin = table_of(parameter), found.taken.get(parameter)
        if origin is None or not same[table is not None]:
            continue
        rows = None if table is None else model[parameter].size()[0]
        stored_rows = None if table is None else stored.shapes[f"{MODEL}{origin}"][0]
        for key, value in states.items():
            state = key.removeprefix(f"{table}.") if table is not None else key
            name = by_place.get((origin, state))
            said = f"{table or parameter.removeprefix('objective.')}.{state}"
            if name is None or not state_fits(value.size(), stored.shapes[name.stored], rows, stored_rows):
                notes.append(f"the optimizer's {said} is fresh: the run has none of a shape that fits")
                continue
            _fill(stored, name.stored, value)
            taken.append(said)
    return taken, notes


@contextmanager
def _on_all_ranks() -> Iterator[None]:
    """Raise on every rank what any of them could not read: the others must not wait for it."""
    problems = [""] * dist.get_world_size()
    try:
        yield
    except CheckpointError as error:
        dist.all_gather_object(problems, str(error))
    else:
        dist.all_gather_object(problems, "")
    if told := [problem for problem in problems if problem]:
        raise CheckpointError(f"init_from: {told[0]}")


def _fill(stored: StoredTensors, name: str, value: object) -> None:
    for part, *place in local_shards(value):
        offsets = [*place, *[0] * part.dim()][: part.dim()]  # towers of several tasks have three axes
        stored.copy_into(name, part, offsets)


def _differences(config: RunConfig, source: StoredRun) -> list[str]:
    """Return where names and shapes may fit and mean something else."""
    notes = []
    tasks = _names(source.section("tasks"))
    if tasks != list(config.task_names):
        notes.append(
            f"the run's tasks were {', '.join(tasks)}: what a head numbers by task (head.last.0) is taken by its number"
        )
    features = config.features
    here = [f.name for f in features.sparse] + [f.name for f in features.sequences] + [f.name for f in features.dense]
    there = [n for part in ("sparse", "sequences", "dense") for n in _names(source.section("features", part))]
    if here != there:
        notes.append("the run's features were others, or in another order: layers over all of them go by position")
    for part, plugin in (("bottom", config.bottom), ("head", config.head)):
        if (other := source.section(part, "type")) != plugin.type:
            notes.append(f"the run's {part} was {other}: layers of the same path and shape are taken")
    return notes


def _names(entries: object) -> list[str]:
    return [str(e.get("name")) for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []
