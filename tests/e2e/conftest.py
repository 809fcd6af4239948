"""A small run that several tests read: trained once a session."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from torchrec_mtl.data.synthetic import make_config, make_table

REPOSITORY = Path(__file__).resolve().parents[2]


def command(*args, cwd=None):
    """Run ``torchrec-mtl`` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "torchrec_mtl", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=None,
    )


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def cli():
    return command


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder with data, a config, and a trained run: ``config.yaml``, ``test.parquet``, ``run``."""
    folder = tmp_path_factory.mktemp("small")
    for name, rows, seed in (("train", 8000, 0), ("validation", 600, 1), ("test", 2001, 2)):
        pq.write_table(make_table(rows, seed=seed), folder / f"{name}.parquet", row_group_size=500)
    raw = make_config(str(folder / "train.parquet"), run_dir=str(folder / "run"))
    raw["data"] |= {
        "eval": str(folder / "validation.parquet"),
        "test": str(folder / "test.parquet"),
        "keys": ["user_id", "item_id"],
        "group": "user_id",
    }
    raw["head"] = {"type": "htlnet", "tower": [32, 16]}
    raw["gradient"] = {"type": "htlnet", "core": "watch_time"}
    raw["optim"] = {"dense": {"lr": 3e-3}}
    raw["train"] = {"epochs": 3, "log_every": 20, "references": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(raw))
    done = command("train", folder / "config.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "train.log").write_text(done.stdout)
    return folder
