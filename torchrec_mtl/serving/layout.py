"""Where a bundle's tables lie, and which rows of them a feature reads. Without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.features import FeaturesSpec, FieldSpec

Bits = Literal[32, 16, 8, 4]
"""Of a number: fp32, fp16, or quantised by row."""


class Record(BaseModel):
    """A part of ``bundle.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Stored(Record):
    """A table, as rows of a file."""

    table: str
    file: NonNegativeInt
    """Place of its file in ``Layout.files``."""
    first: NonNegativeInt
    """Its row 0 is this row of the file."""
    rows: PositiveInt


class TableFile(Record):
    """Tables of one width and type, one below the other."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.npy$")]
    rows: PositiveInt
    dim: PositiveInt
    bits: Bits

    @property
    def width(self) -> int:
        """Numbers, or bytes where it is quantised, of a row: quantised ones end with scale and bias, in fp16."""
        return self.dim if self.bits >= 16 else (self.dim * self.bits + 7) // 8 + 4


class PooledField(Record):
    """A pooled field: what it reads, and how."""

    name: str
    """``feature@task`` where the table belongs to one task."""
    feature: str
    file: NonNegativeInt
    first: NonNegativeInt
    pooling: Literal["mean", "sum"]
    user: bool
    """Whether it is of the user's side."""


class History(Record):
    """A sequence: what it reads."""

    name: str
    feature: str
    file: NonNegativeInt
    first: NonNegativeInt
    user: bool
    gaps: bool


class Layout(Record):
    """All of it."""

    files: tuple[TableFile, ...]
    tables: tuple[Stored, ...]
    fields: tuple[PooledField, ...]
    histories: tuple[History, ...]

    def groups(self, *, one_user: bool) -> tuple[tuple[PooledField, ...], ...]:
        """Return the fields in groups, each to be looked up at once.

        Args:
            one_user: fields of the user's side are looked up for one row, not for each; apart from the others.
        """
        found: dict[tuple[int, str, bool], list[PooledField]] = {}
        for field in self.fields:
            found.setdefault((field.file, field.pooling, one_user and field.user), []).append(field)
        return tuple(tuple(fields) for fields in found.values())


def lay_out(features: FeaturesConfig, spec: FeaturesSpec, quantised: Literal[8, 4] | None = None) -> Layout:
    """Decide where each table of a model goes.

    Args:
        features: tables and features of the run.
        spec: what the tables deliver, with the copies that belong to one task.
        quantised: bits of a number; None: as in training.
    """
    configs = {table.name: table for table in features.tables}
    used = dict.fromkeys(f.table for f in (*spec.fields, *spec.sequences))
    files: list[TableFile] = []
    tables: dict[str, Stored] = {}
    for name in used:
        config = configs[name.partition("@")[0]]
        bits: Bits = quantised or (32 if config.dtype == "fp32" else 16)
        place = next((i for i, f in enumerate(files) if (f.dim, f.bits) == (config.dim, bits)), len(files))
        if place == len(files):
            files.append(TableFile(name=f"dim{config.dim}-bits{bits}.npy", rows=config.rows, dim=config.dim, bits=bits))
            first = 0
        else:
            first = files[place].rows
            files[place] = files[place].model_copy(update={"rows": first + config.rows})
        tables[name] = Stored(table=name, file=place, first=first, rows=config.rows)
    pooling = {name: configs[name.partition("@")[0]].pooling for name in used}
    return Layout(
        files=tuple(files),
        tables=tuple(tables.values()),
        fields=tuple(
            PooledField(**_reads(f, tables), pooling=pooling[f.table])  # type: ignore[arg-type]
            for f in spec.fields
        ),
        histories=tuple(
            History(**_reads(s, tables), gaps=s.gaps)  # type: ignore[arg-type]
            for s in spec.sequences
        ),
    )


def _reads(spec: FieldSpec, tables: dict[str, Stored]) -> dict[str, object]:
    stored = tables[spec.table]
    return {
        "name": spec.name,
        "feature": spec.name.removesuffix(f"@{spec.task}") if spec.task else spec.name,
        "file": stored.file,
        "first": stored.first,
        "user": spec.side == "user",
    }
