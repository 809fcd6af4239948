"""Bundles: what they hold, when they are refused, and what stays when an export fails."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.runs import saved
from torchrec_mtl.serving import parity
from torchrec_mtl.serving.bundle import ABOUT, read_about
from torchrec_mtl.serving.export import Options, export_run
from torchrec_mtl.serving.files import predict_files
from torchrec_mtl.serving.parity import ParityError
from torchrec_mtl.serving.predictor import Predictor
from torchrec_mtl.serving.tables import map_tables
from torchrec_mtl.training.inference import predict_run


def test_a_bundle_says_what_predict_says(run: Path, bundle: Path, tmp_path: Path):
    data = [str(run.parent / "rows.parquet")]
    assert predict_run(run, data, tmp_path / "trainer.parquet") == 300
    assert predict_files(Predictor.load(bundle), data, tmp_path / "bundle.parquet") == (300, ())
    trainer, found = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("trainer", "bundle"))
    pd.testing.assert_frame_equal(trainer, found, rtol=1e-5, atol=1e-5)
    assert found["click"].std() > 1e-3


def test_tables_are_those_of_the_checkpoint(run: Path, bundle: Path):
    layout = read_about(bundle).layout
    files, tensors = map_tables(layout, bundle / "tables"), saved(run, "latest")
    for table in layout.tables:
        (stored,) = [v for k, v in tensors.items() if k.endswith(f".{table.table}.weight")]
        assert torch.equal(files[table.file][table.first : table.first + table.rows], stored)


def test_it_says_what_it_is_of(run: Path, bundle: Path):
    about = read_about(bundle)
    assert about.parity is not None
    assert about.parity.rows == 300
    assert max(about.parity.largest.values()) <= parity.TOLERANCE
    assert set(about.parity.largest) == {"click", "long_view", "watch_time"}
    assert about.step == json.loads((run / "metrics.json").read_text())["step"]
    assert about.versions["torch"] == torch.__version__
    for name in ("config.yaml", "statistics.json", "metrics.json"):
        assert (bundle / name).read_bytes() == (run / name).read_bytes()


def test_programs_do_not_tell_where_they_were_made(bundle: Path):
    here = str(Path(parity.__file__).parents[2]).encode()
    for program in (bundle / "programs").iterdir():
        assert here not in program.read_bytes()


@pytest.mark.parametrize(("bits", "share"), [(8, 0.8), (4, 0.55)])
def test_quantised_tables_are_smaller_and_lose_little(run: Path, bundle: Path, tmp_path: Path, bits: int, share: float):
    about = export_run(run, tmp_path / "q", Options(quantise=bits, max_loss=0.05))
    size, full = (sum(f.stat().st_size for f in (b / "tables").iterdir()) for b in (tmp_path / "q", bundle))
    assert size < share * full
    assert about.parity is not None
    assert 0 < max(about.parity.largest.values()) < 0.5
    assert set(about.parity.metrics) == {"click", "long_view", "watch_time"}
    table = pq.read_table(run.parent / "rows.parquet")
    wanted, found = (Predictor.load(b)(table)["click"] for b in (bundle, tmp_path / "q"))
    assert 0 < np.abs(wanted - found).max() < 0.05


def test_an_export_that_loses_too_much_is_refused_and_leaves_the_one_before(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    before = export_run(run, out, Options(rows=10))
    with pytest.raises(ParityError, match=r"tables of 4 bits lose more than -1: .*auc 0\.\d+ -> 0\.\d+.*--max-loss"):
        export_run(run, out, Options(quantise=4, max_loss=-1.0))
    assert read_about(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bundle_that_says_something_else_is_refused(run: Path, tmp_path: Path):
    says = Predictor.__call__

    def wrong(self, columns, *, strict=False):
        return {name: values + (2e-5 if name == "click" else 0) for name, values in says(self, columns).items()}

    with (
        patch.object(Predictor, "__call__", wrong),
        pytest.raises(ParityError, match=r"does not score as the trainer does: .* click 2e-05, allowed 1e-05"),
    ):
        export_run(run, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_what_one_user_gets_is_compared_too(run: Path, tmp_path: Path):
    says = Predictor.score

    def wrong(self, user, candidates, context=None):
        return {name: values * 1.001 for name, values in says(self, user, candidates, context).items()}

    with patch.object(Predictor, "score", wrong), pytest.raises(ParityError, match="does not score as the trainer"):
        export_run(run, tmp_path / "out")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda out: out.write_text("x"), "is a file; name a folder"),
        (lambda out: (out.mkdir(), (out / "mine.txt").write_text("x")), "holds other files, and no bundle"),
    ],
)
def test_nothing_of_the_users_is_overwritten(run: Path, tmp_path: Path, prepare, message: str):
    prepare(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        export_run(run, tmp_path / "out")
    assert (tmp_path / "out").exists()


def test_bad_sources_are_told(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="no Parquet file found"):
        export_run(run, tmp_path / "out", Options(data=("nowhere.parquet",)))
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    shard = next((damaged / "checkpoints").glob("step-*/*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100] + bytes(100))
    with pytest.raises(RuntimeError, match="is damaged"):
        export_run(damaged, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_bundle_is_replaced_whole(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    export_run(run, out, Options(rows=10))
    (out / "leftover.txt").write_text("of the one before")
    about = export_run(run, out, Options(rows=20))
    assert about.parity is not None
    assert about.parity.rows == 20
    assert not (out / "leftover.txt").exists()
    assert json.loads((out / ABOUT).read_text())["sha256"].keys() == {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.name != ABOUT
    }


def test_an_export_that_was_killed_leaves_nothing_for_long(run: Path, tmp_path: Path):
    (tmp_path / ".partial-out-999999999" / "tables").mkdir(parents=True)
    mine = tmp_path / f".partial-out-{os.getppid()}"
    mine.mkdir()
    export_run(run, tmp_path / "out", Options(rows=5))
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "out"]


def test_a_root_is_no_bundle(run: Path):
    with pytest.raises(ValueError, match="/ cannot be a bundle; name a folder of its own"):
        export_run(run, "/")


def test_ids_are_compared_with_those_of_training(run: Path, tmp_path: Path):
    rows = pq.read_table(run.parent / "rows.parquet")
    strings = rows.set_column(rows.column_names.index("user_id"), "user_id", rows["user_id"].cast("string"))
    pq.write_table(strings, tmp_path / "strings.parquet")
    with pytest.raises(
        ValueError, match=r"column 'user_id' of .*strings\.parquet holds strings, .* trained on integers"
    ):
        export_run(run, tmp_path / "out", Options(data=(str(tmp_path / "strings.parquet"),)))


def test_metrics_that_rows_do_not_define_are_left_out_or_refused(run: Path, tmp_path: Path):
    rows = pq.read_table(run.parent / "rows.parquet")
    for name, others in (("one", ()), ("all", ("long_view", "watch_time"))):
        same = rows
        for column in ("click", *others):
            same = same.set_column(same.column_names.index(column), column, pa.array([1.0] * 300, rows[column].type))
        pq.write_table(same, tmp_path / f"{name}.parquet")
    about = export_run(run, tmp_path / "out", Options(8, max_loss=0.1, data=(str(tmp_path / "one.parquet"),)))
    assert about.parity is not None
    assert set(about.parity.metrics) == {"long_view", "watch_time"}
    assert read_about(tmp_path / "out") == about
    with pytest.raises(ValueError, match="no task has a metric on these rows"):
        export_run(run, tmp_path / "out", Options(8, data=(str(tmp_path / "all.parquet"),)))


def test_a_model_that_says_nan_is_refused(run: Path, tmp_path: Path):
    from torchrec_mtl.serving import export

    trained = export.trained_model

    def diverged(*arguments):
        model = trained(*arguments)
        next(model.objective.head.parameters()).fill_(float("nan"))
        return model

    with (
        patch.object(export, "trained_model", diverged),
        pytest.raises(ParityError, match="the trainer's model says NaN or infinity for"),
    ):
        export_run(run, tmp_path / "out")


def test_a_mistyped_column_of_a_file_is_told(run: Path, bundle: Path, tmp_path: Path):
    rows = pq.read_table(run.parent / "rows.parquet")
    names = ["user_ids" if name == "user_id" else name for name in rows.column_names]
    pq.write_table(rows.rename_columns(names), tmp_path / "typo.parquet")
    with pytest.raises(ValueError, match=r"typo\.parquet: nothing reads a column 'user_ids'. Did you mean 'user_id'"):
        predict_files(Predictor.load(bundle), [str(tmp_path / "typo.parquet")], tmp_path / "out.parquet")
    pq.write_table(rows.drop_columns(["user_id"]), tmp_path / "less.parquet")
    rows_and_missing = predict_files(Predictor.load(bundle), [str(tmp_path / "less.parquet")], tmp_path / "out.parquet")
    assert rows_and_missing == (300, ("user_id",))
