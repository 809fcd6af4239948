"""What tests of serving share: small trained runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.runs import BATCH, raw_config, train_ranks, write
from torchrec_mtl.data.synthetic import make_table


def train_small(folder: Path, ranks: int = 1, **sections: Any) -> Path:
    """Train for an epoch of a few steps; return the run_dir. Its rows are ``rows.parquet`` beside it."""
    folder.mkdir(exist_ok=True)
    train = write(folder / "train.parquet", make_table(4 * BATCH, seed=1))
    write(folder / "rows.parquet", make_table(300, seed=2))
    raw = raw_config(train, folder / "run", **sections)
    raw["data"] |= {"test": str(folder / "rows.parquet")}
    raw["train"] = {"epochs": 1, **raw.get("train", {})}
    train_ranks(raw, ranks)
    return folder / "run"
