"""Tensors of a checkpoint, slice by slice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.checkpoint import CheckpointError, Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.state_names import Name, read_names
from torchrec_mtl.training.stored import StoredTensors
from torchrec_mtl.training.stored_run import StoredRun

TABLE = torch.arange(60.0).view(10, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {
        "table": TABLE,
        "turned": TABLE.T,
        "count": torch.tensor(7),
        "half": TABLE.bfloat16(),
        "empty": torch.zeros(0, 3),
    }
    return save(tmp_path_factory.mktemp("run"), tensors)


def save(run_dir: Path, tensors: dict[str, Tensor]) -> Path:
    with process_group("cpu"):
        checkpoints = Checkpoints(run_dir)
        checkpoints.save({"model": tensors, "rng": {"cpu_rank0": torch.get_rng_state()}}, {}, step=1, best=False)
    return checkpoints.folder / checkpoints.index()["latest"]


def test_names_shapes_and_types_are_those_that_were_saved(folder: Path) -> None:
    stored = StoredTensors(folder)
    assert stored.shapes["model.table"] == (10, 6)
    assert stored.dtypes["model.half"] is torch.bfloat16
    assert set(stored.shapes) == {f"model.{name}" for name in ("table", "turned", "count", "half", "empty")}


def test_whole_tensors_come_back_as_they_were(folder: Path, tmp_path: Path) -> None:
    stored = StoredTensors(folder)
    assert torch.equal(stored.whole("model.table", tmp_path / "0"), TABLE)
    assert torch.equal(stored.whole("model.turned", tmp_path / "1"), TABLE.T)
    assert torch.equal(stored.whole("model.half", tmp_path / "2"), TABLE.bfloat16())
    assert int(stored.whole("model.count", tmp_path / "3")) == 7
    assert stored.whole("model.empty", tmp_path / "4").shape == (0, 3)
    assert not any(tmp_path.iterdir())  # nothing was stored in parts


@pytest.mark.parametrize(
    ("row", "column", "height", "width"), [(0, 0, 10, 6), (3, 2, 4, 3), (8, 0, 5, 6), (12, 0, 2, 6)]
)
def test_a_part_is_overwritten_where_there_is_something(
    folder: Path, row: int, column: int, height: int, width: int
) -> None:
    part, expected = torch.full((height, width), -1.0), torch.full((height, width), -1.0)
    found = TABLE[row : row + height, column : column + width]
    expected[: len(found)] = found
    StoredTensors(folder).copy_into("model.table", part, (row, column))
    assert torch.equal(part, expected)


def test_a_few_rows_of_a_large_table_take_no_memory_of_the_rest(tmp_path: Path) -> None:
    rows = 250_000
    path = save(tmp_path, {"table": torch.arange(rows, dtype=torch.float32).repeat_interleave(64).view(rows, 64)})
    before, after, found = run_ranks(read_rows, 1, str(path), rows - 10)[0]
    print(f"10 rows of a table of {rows * 256 / 2**20:.0f} MiB: {(after - before) / 2**20:.1f} MiB more at the most")
    assert torch.equal(found[:, 0], torch.arange(rows - 10, rows, dtype=torch.float32))
    assert after - before < 16 * 2**20


def read_rows(path: str, first: int) -> tuple[int, int, Tensor]:
    """Runs in a rank: most memory before and after reading ten rows, and the rows."""
    warm = torch.empty(1, 64)
    stored = StoredTensors(Path(path))
    stored.copy_into("model.table", warm, (0, 0))
    before, part = most_memory(), torch.empty(10, 64)
    stored.copy_into("model.table", part, (first, 0))
    return before, most_memory(), part


def most_memory() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_files_that_are_cut_off_or_gone_are_a_checkpoint_error(tmp_path: Path) -> None:
    path = save(tmp_path, {"table": torch.zeros(1000, 8), "more": torch.ones(1000, 8)})
    (part,) = path.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:-60_000])
    for name in ("model.table", "model.more"):
        with pytest.raises(CheckpointError, match=r"cannot read .*; take another checkpoint of the run"):
            StoredTensors(path).whole(name, tmp_path / "scratch")
    part.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        StoredTensors(path).whole("model.table", tmp_path / "scratch")
    (path / ".metadata").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match="refused"):
        StoredTensors(path)


def test_states_belong_to_their_parameter_and_table() -> None:
    table, path = "embeddings.ebc.embedding_bags.user@click.weight", "objective.head.last.0.weight"
    keys = [f"model.{table}", f"model.{path}", "model.objective.head.last.0.weight_scale"]
    keys += [f"optim.state.{table}.user@click.momentum1", f"optim.state.{path}.exp_avg", "optim.state.gone.exp_avg"]
    found = {(name.owner, name.state) for name in read_names(keys)}
    assert found == {
        ("user@click", None),
        ("head.last.0.weight", None),
        ("head.last.0.weight_scale", None),
        ("user@click", "momentum1"),
        ("head.last.0.weight", "exp_avg"),
    }
    assert Name("", "objective.losses.0.mean", None).owner == "losses.0.mean"


def test_a_run_is_looked_up_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml of one\. Give the run_dir"):
        StoredRun.find(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {}\nhead: {type: htlnet}\nrun_dir: x\n")
    with pytest.raises(CheckpointError, match=r"no latest checkpoint in .*; was the run trained\?"):
        StoredRun.find(tmp_path)
    with process_group("cpu"):
        Checkpoints(tmp_path).save({"model": {"table": TABLE}}, {"step": 3}, step=3, best=False)
    found = StoredRun.find(tmp_path)
    assert (found.step, found.updates, found.section("head", "type")) == (3, 3, "htlnet")
    assert found.section("optim", "sparse", "type") is None
    with pytest.raises(CheckpointError, match=r"no best checkpoint in .*; it has a latest one"):
        StoredRun.find(tmp_path, "best")
