"""Writes the files that all contenders read: train.parquet, test.parquet, and what their columns are, columns.json.

    python -m benchmarks.peer_runners.write_data small FOLDER --seed 0 --rows 200000 --test-rows 50000 --table-rows 9600
    python -m benchmarks.peer_runners.write_data cdnow FOLDER

Of an example's data only what every contender can take is kept: columns with one id a row, dense columns, and the two
binary tasks named here. A process of its own, so that the one that starts the contenders stays small.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from torchrec_mtl.data.oracle import make_oracle_table

ROOT = Path(__file__).parents[2]
FIELDS, DENSE = 20, 5
EXAMPLES = {"cdnow": ("htlnet", ("buys_again", "buys_twice")), "kuairand": ("htlnet", ("is_click", "long_view"))}


def write_generated(folder: Path, *, seed: int, rows: int, test_rows: int, table_rows: int) -> None:
    """Draw click and buy, a buy needs a click; train and test come from one planted world."""
    names = [*(f"f{i}" for i in range(FIELDS)), *(f"d{i}" for i in range(DENSE)), "click", "buy"]
    for name, count, part in (("train", rows, 0), ("test", test_rows, 1)):
        table = make_oracle_table(
            count,
            seed=2 * seed + part,
            rows_per_field=table_rows,
            num_fields=FIELDS,
            num_dense=DENSE,
            relation="funnel",
        )
        _write(table.select(names), folder / f"{name}.parquet")
    sparse = {f"f{i}": table_rows for i in range(FIELDS)}
    _describe(folder, sparse, [f"d{i}" for i in range(DENSE)], ["click", "buy"])


def write_example(folder: Path, example: str) -> None:
    """Take an example's prepared files; dense columns get mean 0 and standard deviation 1 of the training rows."""
    yaml_name, tasks = EXAMPLES[example]
    config: dict[str, Any] = yaml.safe_load((ROOT / "examples" / example / f"{yaml_name}.yaml").read_text())
    features, data = config["features"], config["data"]
    table_rows = {t["name"]: t["rows"] for t in features["tables"]}
    rows = {s.get("column", s["name"]): table_rows[s["table"]] for s in features["sparse"]}
    dense = [d if isinstance(d, str) else d.get("column", d["name"]) for d in features["dense"]]
    train, test = _read(data["train"], example), _read(data["test"], example)
    sparse = {name: count for name, count in rows.items() if pa.types.is_integer(train.schema.field(name).type)}
    for name in (*sparse, *dense, *tasks):
        if nulls := train.column(name).null_count + test.column(name).null_count:
            raise SystemExit(f"{example}: {name} has {nulls} nulls, which the peers cannot read; leave {example} out")
    scales = {name: _scale(train, name) for name in dense}
    for name, table in (("train", train), ("test", test)):
        columns: dict[str, Any] = {n: table.column(n).cast(pa.int64()) for n in sparse}
        for n, (mean, std) in scales.items():
            columns[n] = ((table.column(n).to_numpy().astype(np.float64) - mean) / std).astype(np.float32)
        columns |= {task: table.column(task).cast(pa.int8()) for task in tasks}
        _write(pa.table(columns), folder / f"{name}.parquet")
    _describe(folder, sparse, dense, list(tasks))


def _read(pattern: str, example: str) -> pa.Table:
    path = ROOT / pattern
    if not path.is_file():
        raise SystemExit(
            f"{pattern} is missing: make it with examples/{example}/prepare.py (its README says how), "
            f"or leave {example} out of --data"
        )
    return pq.read_table(path)


def _scale(table: pa.Table, name: str) -> tuple[float, float]:
    values = table.column(name).to_numpy().astype(np.float64)
    return float(values.mean()), float(values.std()) or 1.0


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=16_384)


def _describe(folder: Path, sparse: dict[str, int], dense: list[str], tasks: list[str]) -> None:
    """Write columns.json, last: a folder without it is not finished."""
    columns = {"sparse": sparse, "dense": dense, "tasks": tasks}
    (folder / "columns.json").write_text(json.dumps(columns, indent=2) + "\n")


def main() -> None:
    """Write one data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path)
    for option in ("--seed", "--rows", "--test-rows", "--table-rows"):
        parser.add_argument(option, type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.data in EXAMPLES:
        write_example(options.folder, options.data)
        return
    write_generated(
        options.folder,
        seed=options.seed,
        rows=options.rows,
        test_rows=options.test_rows,
        table_rows=options.table_rows,
    )


if __name__ == "__main__":
    main()
