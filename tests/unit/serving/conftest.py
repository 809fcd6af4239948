"""A trained run and its bundle, made once."""

from pathlib import Path

import pytest

from tests.serving_runs import train_small
from torchrec_mtl.serving.export import export_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def bundle(run: Path) -> Path:
    export_run(run, run.parent / "bundle")
    return run.parent / "bundle"
