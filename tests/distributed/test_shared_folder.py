"""All ranks must see one run_dir: each writes its part of a checkpoint there."""

from pathlib import Path

import pytest
import torch.distributed as dist

from tests.runs import raw_config
from torchrec_mtl.config.load import parse
from torchrec_mtl.testing import run_ranks
from torchrec_mtl.training.run_dir import enter

pytestmark = pytest.mark.distributed


def go_in(folder: str, apart: bool) -> str:
    """Runs in a rank: enter a folder of its own, or that of all."""
    run_dir = Path(folder) / (f"rank{dist.get_rank()}" if apart else "run")
    if apart:
        run_dir.mkdir()
    try:
        enter(run_dir, parse(raw_config("train.parquet", run_dir)), fresh=False)
    except ValueError as error:
        return str(error)
    return "entered"


def test_ranks_that_see_other_folders_are_named_on_all_ranks(tmp_path: Path) -> None:
    for message in run_ranks(go_in, 2, str(tmp_path), True):
        assert "must lie on storage that all nodes share; ranks [1] do not see it" in message
    assert not list(tmp_path.rglob(".token-*"))


def test_one_folder_is_entered_by_all(tmp_path: Path) -> None:
    assert run_ranks(go_in, 2, str(tmp_path), False) == ["entered"] * 2
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]
