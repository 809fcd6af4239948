"""Makes the archive of a stopped run that later versions must go on with: ``python -m tests.old_runs.make``.

Run once a release, before the version is raised; old archives stay, and ``tests/distributed/test_old_runs.py`` reads
them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.runs import ADAPTIVE, BATCH, raw_config, saved, train_ranks, train_until, write
from torchrec_mtl import __version__
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.testing.ranks import run_ranks

STOPPED = 6


def old_config(run_dir: Path) -> dict[str, Any]:
    """A run over two epochs of four steps; its paths are relative, so that it can be unpacked anywhere."""
    train = {"epochs": 2, "log_every": 1, "monitor": {"metric": "watch_time/nrmse"}}
    data = {"eval": "eval.parquet"}
    return raw_config("train.parquet", run_dir, optim=ADAPTIVE, data=data, train=train)


def digest(tensor: Tensor) -> str:
    """Of the values, bit for bit."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def main() -> None:
    """Stop a run of two ranks in mid-epoch, note what it holds, let a copy go on to the end, and pack both."""
    archive = Path(__file__).parent / f"{__version__}.zip"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write(Path("train.parquet"), make_table(4 * BATCH - 20, seed=1, nulls=True))
        write(Path("eval.parquet"), make_table(100, seed=2))
        run_ranks(train_until, 2, old_config(Path("run")), STOPPED, 0)
        shutil.rmtree("run/tb")
        held = {key: digest(value) for key, value in saved("run").items()}
        shutil.copytree("run", "end")
        end = train_ranks(old_config(Path("end")), 2).evaluation
        assert end is not None
        expected = {"step": STOPPED, "tensors": held, "loss": end.loss, "tasks": end.tasks}
        Path("expected.json").write_text(json.dumps(expected, indent=2) + "\n")
        shutil.rmtree("end")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as packed:
            for file in sorted(p for p in Path().rglob("*") if p.is_file()):
                packed.write(file)
    sys.stdout.write(f"{archive}: {archive.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
