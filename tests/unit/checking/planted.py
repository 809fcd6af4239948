"""Planted rows as files, faults put into them, and the report of a check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from tests.parquet import write_groups as write
from torchrec_mtl.checking.command import Options, check
from torchrec_mtl.checking.report import Report
from torchrec_mtl.data.synthetic import make_config, make_table

TRAIN = make_table(2000, seed=1)
EVAL = make_table(600, seed=2)


def changed(table: pa.Table, **columns: Any) -> pa.Table:
    """Return a table with columns taken out (None), added, or replaced."""
    for name, values in columns.items():
        if values is None:
            table = table.drop_columns([name])
            continue
        array = values if isinstance(values, pa.Array) else pa.array(values)
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, array)
        else:
            table = table.append_column(name, array)
    return table


def config(folder: Path, **sections: Any) -> Path:
    """Write the YAML of train.parquet and eval.parquet in a folder; sections are merged into the planted ones."""
    raw = make_config(str(folder / "train.parquet"), run_dir=str(folder / "run"))
    raw["features"]["tables"][2]["rows"] = 1000  # so that hashed tags hardly share rows
    raw["data"]["eval"] = str(folder / "eval.parquet")
    for name, section in sections.items():
        if isinstance(section, Mapping) and isinstance(raw.get(name), dict):
            raw[name] |= section
        else:
            raw[name] = section
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def report(
    folder: Path, train: pa.Table = TRAIN, judged: pa.Table = EVAL, *, options: Options | None = None, **sections: Any
) -> Report:
    """Check two tables, each in one file of three row groups."""
    for name, table in (("train", train), ("eval", judged)):
        third = len(table) // 3 + 1
        write(folder / f"{name}.parquet", table, [third, third, third])
    return check(config(folder, **sections), (), options)


def kinds(found: Report, *levels: str) -> list[tuple[str, str]]:
    """Return (kind, split) of the findings of some levels."""
    return [(f.kind, f.split) for f in found.findings if f.level in (levels or ("error", "warning"))]


def numbers(table: pa.Table, column: str) -> Any:
    """Return a copy of a column as NumPy array."""
    return np.array(table[column].to_numpy())
