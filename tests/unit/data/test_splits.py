"""The files of a run by split: what can be opened, and all that is wrong."""

from pathlib import Path
from typing import Any

import pytest

from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.data.files import find_files
from torchrec_mtl.data.splits import find_data, missing_files, open_data
from torchrec_mtl.data.synthetic import make_table

TABLE = make_table(20, seed=0)


def test_what_can_be_opened_is_returned_beside_the_problems(write: Any, tmp_path: Path) -> None:
    good = write("good.parquet", TABLE)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    files, problems = find_files([str(tmp_path), "nowhere.parquet"])
    assert [file.path for file in files] == [str(good)]
    assert ["nowhere.parquet: no Parquet file found" in p or "not a whole Parquet file" in p for p in problems] == [
        True
    ] * 2


def test_all_problems_of_all_splits_at_once(write: Any, config: Any, tmp_path: Path) -> None:
    train = write("train.parquet", TABLE.drop_columns(["age"]))
    run = config(data={"train": str(train), "eval": str(tmp_path / "eval.parquet"), "test": "nosuch://a/b.parquet"})
    opened, problems = find_data(run)
    assert list(opened) == ["train"]
    assert [problem.split(": ")[0] for problem in problems] == ["data.train", "data.eval", "data.test"]
    with pytest.raises(ConfigError, match="data: 3 problems"):
        open_data(run)
    assert missing_files(run) == [str(tmp_path / "eval.parquet")]


def test_columns_are_looked_at_beside_a_damaged_file(write: Any, config: Any, tmp_path: Path) -> None:
    write("train/0.parquet", TABLE.drop_columns(["age"]))
    (tmp_path / "train" / "1.parquet").write_bytes(b"")
    _, problems = find_data(config(data={"train": str(tmp_path / "train")}))
    assert len(problems) == 2
    assert "empty file (0 bytes)" in problems[0]
    assert "dense feature 'age', column 'age': not in" in problems[1]
