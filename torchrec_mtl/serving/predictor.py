"""A bundle, loaded: columns in, predictions out. Needs torch, and fbgemm for quantised tables; not TorchRec."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.export.graph_signature import InputKind

from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.rows import Rows
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.serving.bundle import COMPILED, PROGRAMS, TABLES, About, check_files, read_about
from torchrec_mtl.serving.columns import (
    Columns,
    InputColumn,
    check_elements,
    completed,
    elements_of,
    input_columns,
    of_side,
    to_table,
)
from torchrec_mtl.serving.inputs import InputMaker
from torchrec_mtl.serving.tables import map_tables
from torchrec_mtl.serving.trusted import load_program

Floats = npt.NDArray[np.float32]
Pairs = Sequence[tuple[Tensor, ...]]

_AT_ONCE = 8192  # rows: what a program needs beside the tables grows with them

# Shapes: B rows, K tasks, D width of the vectors of an index.


class Predictor:
    """Scores rows as the trainer does.

    Safe to be called from several threads at once.

    Attributes:
        about: the bundle's description: versions, run, step, checksums, parity.
        tasks: names of the K tasks.
        outputs: names of what a score returns: the tasks, then the head's further predictions.
        columns: what it reads.
    """

    def __init__(
        self,
        about: About,
        statistics: Statistics,
        tables: Sequence[Tensor],
        programs: Mapping[str, Callable[..., Tensor]],
        *,
        bad_ids: Literal["error", "drop", "clamp"] | None = None,
    ) -> None:
        """Use ``load``."""
        self.about = about
        self.tasks = tuple(task.name for task in about.tasks)
        self.outputs = about.outputs
        self.columns: tuple[InputColumn, ...] = input_columns(about.features)
        self._tables, self._programs = list(tables), programs
        data = DataConfig(train=("unused",), bad_ids=bad_ids or about.bad_ids)
        parts = {True: of_side(about.features, user=True), False: of_side(about.features, user=False)}
        self._encoder = Encoder(data, about.features, (), statistics, labels=False)
        self._sides = {user: Encoder(data, part, (), statistics, labels=False) for user, part in parts.items()}
        self._dense = {user: _places(part, about.features) for user, part in parts.items()}
        self._make, self._make_for_one = (InputMaker(about.layout, one_user=one) for one in (False, True))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        compiled: bool = False,
        bad_ids: Literal["error", "drop", "clamp"] | None = None,
        check_tables: bool = True,
    ) -> Self:
        """Load a bundle; nothing in it is unpickled, and no code of it runs, unless ``compiled``.

        Args:
            folder: that ``torchrec-mtl export`` wrote.
            compiled: run the native code in it, of ``export --compile``: only of bundles from somebody you trust.
            bad_ids: what to do with an id outside its table; by default what the run does.
            check_tables: read all tables once, to compare their checksums.

        Raises:
            ValueError: it is no bundle, is damaged, of a later version, or holds more than it should.
        """
        path = Path(folder)
        about = read_about(path)
        check_files(path, about, tables=check_tables)
        if about.quantised:
            import fbgemm_gpu  # noqa: F401  # registers the operators that programs name
        statistics = Statistics.load(path / "statistics.json")
        if lacking := [d.name for d in about.features.dense if d.normalize and d.name not in statistics.dense]:
            raise ValueError(f"{path / 'statistics.json'} does not know the columns {', '.join(lacking)}; export again")
        if compiled and not about.compiled:
            raise ValueError(f"the bundle in {path} has no native code; export it with --compile")
        load = _load_compiled if compiled else _load
        programs: dict[str, Callable[..., Tensor]] = {kind: load(path, kind) for kind in about.programs}
        return cls(about, statistics, map_tables(about.layout, path / TABLES), programs, bad_ids=bad_ids)

    def __call__(self, columns: Columns, *, strict: bool = False) -> dict[str, Floats]:
        """Score rows, each with a user of its own.

        Args:
            columns: name -> values of B rows, a pandas ``DataFrame``, or an Arrow table. What a null or a missing
                column stands for, ``columns`` says. Other columns are left alone.
            strict: other columns are an error.

        Returns:
            Output -> [B], on the label's scale.

        Raises:
            ValueError: a column is of a type that does not fit, or holds ids outside its table.
        """
        table = completed(to_table(columns), self._encoder.columns, "the input", strict=strict)
        rows = self._encode(self._encoder, table, "the input")
        return self._scores([self._run("rows", self._make(block)) for block in _blocks(rows)])

    def score(
        self, user: Mapping[str, Any], candidates: Columns, context: Mapping[str, Any] | None = None
    ) -> dict[str, Floats]:
        """Score candidates for one user, whose features are encoded, looked up, and their histories read once.

        Args:
            user: column of the user's side -> value: a number, an id, or a list of them.
            candidates: columns of all other sides, of B rows, as for ``__call__``.
            context: columns of these with one value for all candidates.

        Returns:
            Output -> [B].

        Raises:
            ValueError: as for ``__call__``; or a column is not where it belongs.
        """
        if not isinstance(user, Mapping):
            raise ValueError(f"user must be a mapping of columns to values (found {type(user).__name__})")
        one = self._user_rows({name: [value] for name, value in user.items()}, "user")
        table = to_table(candidates, "candidates")
        if context:
            # Without candidates' columns there is nobody to score.
            count = table.num_rows
            for name, value in context.items():
                if name in table.column_names:
                    raise ValueError(f"'{name}' is given for each of the candidates, and in context; give it once")
                same = to_table({name: [value]}, "context").column(name)
                table = table.append_column(name, same.take(pa.array(np.zeros(count, np.int64))))
        known = self._sides[False].columns
        elsewhere = dict.fromkeys(self._sides[True].columns, "It is of the user: give it under user.")
        table = completed(table, known, "candidates", strict=True, elsewhere=elsewhere)
        rows = self._encode(self._sides[False], table, "candidates")
        make = self._make_for_one
        return self._scores([self._run("one_user", make(self._with_dense(r, one), one)) for r in _blocks(rows)])

    def query_vectors(self, users: Columns) -> Floats:
        """Return [B, K, D]: a sum over K, weighted as you like, is a query for an index of ``item_vectors``.

        Args:
            users: columns of the user's side, of B rows.

        Raises:
            ValueError: the head does not retrieve; or as for ``__call__``.
        """
        return self._vectors("users", users, user=True)

    def item_vectors(self, items: Columns) -> Floats:
        """Return [B, D], what an index holds of items.

        Args:
            items: columns of the item's side, of B rows.

        Raises:
            ValueError: the head does not retrieve; or as for ``__call__``.
        """
        return self._vectors("items", items, user=False)

    def _vectors(self, kind: str, columns: Columns, *, user: bool) -> Floats:
        if kind not in self._programs:
            raise ValueError(
                f"the head {self.about.head} retrieves nothing: it has no vectors of {kind}; score with it"
            )
        table = completed(to_table(columns, kind), self._sides[user].columns, kind, strict=False)
        table = completed(table, self._encoder.columns, kind, strict=False)
        parts = [self._run(kind, self._make(rows)) for rows in _blocks(self._encode(self._encoder, table, kind))]
        if not parts:
            raise ValueError(f"there are no {kind}; give columns of one row at least")
        return np.concatenate(parts)

    def _user_rows(self, columns: Columns, what: str) -> Rows:
        encoder = self._sides[True]
        elsewhere = dict.fromkeys(self._sides[False].columns, "It is not of the user: give it with the candidates.")
        if not columns:  # nothing is known of the user
            return encoder.encode(pa.table({name: pa.nulls(1) for name in encoder.columns or ("",)}), what)
        table = completed(to_table(columns, what), encoder.columns, what, strict=True, elsewhere=elsewhere)
        return self._encode(encoder, table, what)

    def _encode(self, encoder: Encoder, table: pa.Table, what: str) -> Rows:
        if encoder.fits != table.schema:  # requests to a server are of one schema
            check_elements(elements_of(self.about.features, table.schema), self.about.elements, what)
            encoder.check_schema(table.schema, what)
        return encoder.encode(table, what)

    def _with_dense(self, rows: Rows, user: Rows) -> Rows:
        """Return the rows with the dense columns of both sides, [B, D0], in the order of the config."""
        dense = np.empty((len(rows), len(self.about.features.dense)), np.float32)
        dense[:, self._dense[False]], dense[:, self._dense[True]] = rows.dense, user.dense
        return rows.with_dense(dense)

    def _run(self, kind: str, inputs: Sequence[Any]) -> Floats:
        with torch.inference_mode():
            found: Floats = self._programs[kind](*inputs, self._tables).numpy()
        return found

    def _scores(self, parts: Sequence[Floats]) -> dict[str, Floats]:
        values = np.concatenate([np.zeros((0, len(self.outputs)), np.float32), *parts])
        return dict(zip(self.outputs, np.ascontiguousarray(values.T), strict=True))


def _places(part: FeaturesConfig, whole: FeaturesConfig) -> list[int]:
    return [whole.dense.index(feature) for feature in part.dense]


def _blocks(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows if len(rows) <= _AT_ONCE else rows.slice(start, start + _AT_ONCE)


def _load(folder: Path, kind: str) -> Callable[..., Tensor]:
    """Return a program as a function of its inputs, without what a module of ``torch.export`` checks at each call.

    That inputs fit one another, `InputMaker` sees to; to have sympy find that out takes longer than a small batch.
    """
    exported = load_program(folder / PROGRAMS / f"{kind}.pt2")
    known = {**exported.state_dict, **exported.constants}
    specs = exported.graph_signature.input_specs
    held = [known[str(s.target)] for s in specs if s.kind != InputKind.USER_INPUT]
    forward = exported.graph_module.forward

    def run(dense: Tensor, pooled: Pairs, histories: Pairs, tables: Sequence[Tensor]) -> Tensor:
        flat = itertools.chain.from_iterable((*pooled, *histories))
        (found,) = forward(*held, dense, *flat, *tables)
        return cast(Tensor, found)

    return run


def _load_compiled(folder: Path, kind: str) -> Callable[..., Tensor]:
    loaded: Callable[..., Tensor] = torch._inductor.aoti_load_package(str(folder / COMPILED / f"{kind}.pt2"))
    return loaded
