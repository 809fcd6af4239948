"""Makes the archive of a bundle that later versions must score alike: ``python -m tests.old_bundles.make``.

Run once a release, before the version is raised; old archives stay, and ``tests/unit/serving/test_old_bundles.py``
reads them all. The head is small, and has histories and quantised tables, so that every kind of file is there.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow.parquet as pq

from tests.serving_runs import train_small
from torchrec_mtl import __version__
from torchrec_mtl.serving.export import Options, export_run
from torchrec_mtl.serving.predictor import Predictor

ROWS = 50


def main() -> None:
    """Train, export twice, note what both say of some rows, and pack all."""
    archive = Path(__file__).parent / f"{__version__}.zip"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train_small(
            folder, head={"type": "mmoe", "experts": 2, "expert": [8], "tower": [4]}, gradient={"type": "sum"}
        )
        expected = {}
        rows = pq.read_table(folder / "rows.parquet").slice(0, ROWS)
        for bundle, options in (("fp32", Options()), ("int8", Options(quantise=8, max_loss=1.0))):
            export_run(run, folder / bundle, options)
            said = Predictor.load(folder / bundle)(rows)
            expected[bundle] = {task: [float(v) for v in values] for task, values in said.items()}
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")
        pq.write_table(rows, folder / "few.parquet")
        for other in (run, folder / "train.parquet", folder / "rows.parquet"):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as packed:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                packed.write(file, file.relative_to(folder))
    sys.stdout.write(f"{archive}: {archive.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
