"""A run that an older version began is one that this version goes on with: see ``tests/old_runs/make.py``."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.old_runs.make import digest, old_config
from tests.runs import saved, train_ranks
from torchrec_mtl.training.checkpoint import Checkpoints

pytestmark = pytest.mark.distributed

ARCHIVES = sorted((Path(__file__).parents[1] / "old_runs").glob("*.zip"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.stem)
def expected(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the old version noted; its run lies in the working folder."""
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)  # the paths in its config are relative
    found: dict[str, Any] = json.loads(Path("expected.json").read_text())
    return found


def test_there_is_an_old_run() -> None:
    assert ARCHIVES


def test_an_old_run_is_read_bit_for_bit_and_goes_on(expected: dict[str, Any]) -> None:
    notes = Checkpoints("run").notes("latest")
    assert notes is not None
    assert notes["step"] == expected["step"]
    assert {name: digest(tensor) for name, tensor in saved("run").items()} == expected["tensors"]
    shutil.copytree("run", "on-one")
    for ranks, run_dir in ((2, "run"), (1, "on-one")):
        raw = old_config(Path(run_dir))
        config = Path(run_dir, "config.yaml")
        config.write_text(config.read_text().replace("run_dir: run\n", f"run_dir: {run_dir}\n"))
        evaluation = train_ranks(raw, ranks).evaluation
        assert evaluation is not None
        assert evaluation.loss == pytest.approx(expected["loss"], rel=1e-3)  # another machine rounds in another way
        assert evaluation.tasks["click"]["auc"] == pytest.approx(expected["tasks"]["click"]["auc"], abs=1e-3)
