"""What tests of whole retrieval runs share: planted impressions with a corpus, and a small config of DMMP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.runs import BATCH, SGD, raw_config, write
from torchrec_mtl.config.features import Side
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.one_side import one_sided
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.retrieval import vectors_of
from torchrec_mtl.training.run_dir import load_run
from torchrec_mtl.training.session import open_session

NUM_ITEMS = 60
HEAD = {
    "type": "dmmp",
    "shared_experts": 1,
    "task_experts": 1,
    "expert": [8],
    "tower": [8],
    "student": [8],
    "dim": 4,
    "gate_tower": [4],
}
TASKS = [{"name": name, "kind": "binary", "label": name} for name in ("click", "long_view")]


def corpus() -> pa.Table:
    """Every item once, in no order of their ids, with the columns of its features."""
    order = np.random.default_rng(0).permutation(NUM_ITEMS)
    return pa.table({"item_id": order, "tags": [[f"tag{i % 20}"] for i in order.tolist()]})


def impressions(num_rows: int, seed: int) -> pa.Table:
    """Rows with the items that their users are not to see again."""
    table = make_table(num_rows, seed=seed)
    rng = np.random.default_rng(seed)
    seen = [rng.integers(0, NUM_ITEMS, n).tolist() for n in rng.integers(0, 4, num_rows)]
    return table.append_column("seen", pa.array(seen, pa.list_(pa.int64())))


def found(num_users: int = 100) -> pa.Table:
    """What a search might have found for every third user."""
    users = np.arange(0, num_users, 3)
    return pa.table({"user_id": users, "ids": [[int(u) % NUM_ITEMS, int(u + 5) % NUM_ITEMS] for u in users]})


def make_files(folder: Path) -> dict[str, str]:
    """Write train, eval, items, and what was found; return their paths."""
    tables = {"train": impressions(6 * BATCH - 30, 1), "eval": impressions(3 * BATCH - 10, 2)}
    tables |= {"items": corpus(), "found": found()}
    return {name: write(folder / f"{name}.parquet", table, row_group=50) for name, table in tables.items()}


def retrieval_config(files: dict[str, str], run_dir: Path, **sections: Any) -> dict[str, Any]:
    """A run of DMMP on these files; ``sections`` as for ``raw_config``."""
    defaults: dict[str, Any] = {"tasks": TASKS, "head": HEAD, "gradient": {"type": "sum"}, "optim": SGD}
    retrieval = {"items": files["items"], "item": "item_id", "query": "user_id", "seen": "seen", "ks": [3, 10]}
    found = raw_config(files["train"], run_dir, **(defaults | {"retrieval": retrieval} | sections))
    found["data"] |= {"eval": files["eval"], "eval_batch_size": BATCH, "shuffle": False}
    return found


def vectors(run_dir: Path, path: str, side: Side) -> Any:
    """What the latest checkpoint makes of a file of one side, [N, D] or [N, K, D]."""
    config, statistics, checkpoints = load_run(run_dir)
    with process_group("cpu") as device:
        session = open_session(config, statistics, device, labels=False)
        session.restore(checkpoints, "latest", weights_only=True)
        return np.concatenate([*vectors_of(session, one_sided(open_files(path), config.features, side), side)])
