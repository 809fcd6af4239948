"""What a new run can take from an earlier one, decided on names and shapes alone, the same on every rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torchrec_mtl.training.state_names import table_of

Shape = tuple[int, ...]


@dataclass
class Match:
    """Parameters and buffers by their names in the model's state dict.

    Attributes:
        taken: of the new run -> of the earlier one.
        grown: table -> (rows kept, rows new); among those taken.
        fresh: of the new run -> why it is not taken.
        unused: of the earlier run.
    """

    taken: dict[str, str] = field(default_factory=dict)
    grown: dict[str, tuple[int, int]] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def tables(self) -> list[str]:
        """Names of the tables taken."""
        return [table for name in self.taken if (table := table_of(name)) is not None]


def match(
    wanted: Mapping[str, Shape], stored: Mapping[str, Shape], *, own: Mapping[str, str], hashed: Collection[str]
) -> Match:
    """Pair what fits: tables by their names, all else by its path.

    A table may have more rows than the stored one, unless its ids are hashed. A task's own copy of a table
    (``video@click``) starts from that copy, or from the shared ``video`` where there is none.

    Args:
        wanted: name -> shape of the new run.
        stored: name -> shape of the earlier run.
        own: name -> why the new run keeps its own value.
        hashed: tables whose ids are hashed.
    """
    tables = {table: name for name in stored if (table := table_of(name)) is not None}
    found = Match()
    for name, shape in wanted.items():
        table = table_of(name)
        source = name if table is None else tables.get(table, tables.get(table.split("@")[0], ""))
        if name in own:
            why = own[name]
        elif source not in stored:
            why = "not in the run"
        elif table is None:
            why = (
                "" if shape == stored[source] else f"its shape is {_shown(shape)}, in the run {_shown(stored[source])}"
            )
        else:
            why = _unfit(shape, stored[source], is_hashed=table.split("@")[0] in hashed)
        if why:
            found.fresh[name] = why
            continue
        found.taken[name] = source
        if table is not None and shape[0] > stored[source][0]:
            found.grown[table] = (stored[source][0], shape[0] - stored[source][0])
    found.unused = sorted(set(stored) - set(found.taken.values()))
    return found


def state_fits(state: Sequence[int], stored: Sequence[int], rows: int | None, stored_rows: int | None) -> bool:
    """Return whether an optimizer's state can be taken; one of a table may have grown with it.

    Args:
        state: shape of the new run's.
        stored: shape of the stored.
        rows: of the table; None in the dense part.
        stored_rows: of the stored table.
    """
    if rows is None or not state:
        return tuple(state) == tuple(stored)
    # A state with other rows than its table is one of a sharding plan, and says nothing under another.
    return len(state) == len(stored) and (state[0], stored[0]) == (rows, stored_rows) and state[1:] == stored[1:]


def _unfit(shape: Shape, stored: Shape, *, is_hashed: bool) -> str:
    """Return why a table cannot start from a stored one; empty: it can."""
    if shape[1:] != stored[1:]:
        return f"its dim is {_shown(shape[1:])}, in the run {_shown(stored[1:])}"
    if shape[0] < stored[0]:
        return f"it has {shape[0]:,} rows, in the run {stored[0]:,}: which of them to keep is not known"
    if is_hashed and shape[0] != stored[0]:
        return (
            f"it has {shape[0]:,} rows, in the run {stored[0]:,}, and its ids are hashed: with another number of rows "
            "every id has another row"
        )
    return ""


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "()"
