"""What bad inputs once brought to light."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.bad_inputs_files import spoil
from benchmarks.bad_inputs_tries import call, seeded
from torchrec_mtl.config.text import read_yaml


def test_a_run_starts_from_one_whose_head_has_parameters_of_three_axes(bench, tmp_path):
    words = ["train", bench.folder / "config.yaml", f"init_from={bench.run}", f"run_dir={tmp_path / 'run'}"]
    done = call([*words, "init_from.optimizers=true"])
    assert done.status == 0, done.said
    taken = json.loads((tmp_path / "run" / "init_from.json").read_text())
    assert "objective.head.towers.last.weight" in taken["dense"]


def test_a_run_that_ends_before_its_first_step_leaves_no_folder(bench, tmp_path):
    run = Path(shutil.copytree(bench.run, tmp_path / "damaged"))
    (file,) = run.glob("checkpoints/step-*/*.distcp")
    file.write_bytes(file.read_bytes()[:-1])
    new = tmp_path / "runs" / "new"
    done = call(["train", bench.folder / "config.yaml", f"init_from={run}", f"run_dir={new}"])
    assert done.status == 1
    assert "is damaged" in done.said
    assert not new.exists()


def test_what_lies_in_the_folder_of_a_run_that_ends_so_stays(bench, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    words = ["train", bench.folder / "config.yaml", f"run_dir={tmp_path / 'run'}", "features.tables.user.rows=3"]
    assert call(words).status == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_codec_that_nobody_knows_does_not_end_the_process(bench, tmp_path):
    rows = bench.rows
    assert any("codec 9" in spoil_codec(rows, tmp_path / f"{number}.parquet", number) for number in range(30))
    pq.write_table(rows, tmp_path / "whole.parquet")
    done = call(["check", bench.folder / "config.yaml", f"data.train={tmp_path}"])
    assert done.status == 1
    assert "Unsupported compression codec value: 9" in done.said


def spoil_codec(rows: pa.Table, path: Path, number: int) -> str:
    for old in path.parent.glob("*.parquet"):
        old.unlink()
    return spoil("wrong codec", seeded(0, number), rows, (), path).what


def test_a_pair_of_escapes_is_one_character_as_in_json_and_half_of_it_is_no_text():
    assert read_yaml(r'run_dir: "runs/\ud83d\ude00"') == ({"run_dir": "runs/\U0001f600"}, [])
    for text in (r'run_dir: "\ud83d"', r'run_dir: "a\0b"'):
        with pytest.raises(ValueError, match=r"line 1: .*half of a character"):
            read_yaml(text)


@pytest.mark.parametrize("command", ["predict", "search", "report", "unshard"])
def test_a_device_is_not_replaced_by_a_file(bench, tmp_path, command):
    os.symlink("/dev/null", tmp_path / "device")
    data = bench.folder / "eval.parquet"
    words = {
        "predict": ["predict", bench.run, "--data", data],
        "search": ["search", bench.index, "--queries", data],
        "report": ["report", bench.run],
        "unshard": ["unshard", bench.run],
    }[command]
    done = call([*words, "--out", tmp_path / "device"])
    assert done.status == 1
    assert f"cannot write {tmp_path / 'device'}: it is no file" in done.said
    assert [path.name for path in tmp_path.iterdir()] == ["device"]


def test_nulls_among_items_are_told_with_file_and_column(bench, tmp_path):
    ids = [None, *bench.items["item_id"].to_pylist()[1:]]
    pq.write_table(bench.items.set_column(0, "item_id", pa.array(ids)), tmp_path / "items.parquet")
    done = call(["index", bench.retrieval, "--items", tmp_path / "items.parquet", "--out", tmp_path / "index"])
    assert done.status == 1
    assert f"items of {tmp_path / 'items.parquet'}, column 'item_id': 1 of 60 ids are null" in done.said
