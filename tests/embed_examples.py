"""What the tests of the embedding examples share: the scripts as modules, and rows to learn from."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    """A script of the examples as a module, with its own folder on the path, as when it runs."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_rows(folder: Path, train: int, test: int) -> Path:
    """Files with the columns of CDNOW that the scripts read; two ids and a dense column decide the labels."""
    script = load("embed_in_dlrm")
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("test", test)):
        ids = {name: rng.integers(0, rows, n) for name, rows in script.SPARSE.items()}
        dense = {name: rng.normal(size=n).astype(np.float32) for name in script.DENSE}
        score = 0.4 * (ids["recency_bucket"] - 7) + 0.5 * (ids["amount_bucket"] % 5 - 2) + dense["log_frequency"]
        again = rng.random(n) < 1 / (1 + np.exp(-score))
        twice = again & (rng.random(n) < 1 / (1 + np.exp(-score)))
        spend = np.where(again, np.exp(2 + 0.5 * score + rng.normal(0, 0.3, n)), 0.0).astype(np.float32)
        labels = {"buys_again": again.astype(int), "buys_twice": twice.astype(int), "spend": spend}
        pq.write_table(pa.table({**ids, **dense, **labels}), folder / f"{split}.parquet")
    return folder
