import re
import shutil

import pytest

from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.fingerprint import Fingerprint


def of(*paths):
    return Fingerprint.of(open_files([str(path) for path in paths]))


def test_survives_json_and_a_move_of_the_folder(write, tmp_path):
    for name in ("data/a.parquet", "data/day=2/b.parquet"):
        write(name, {"x": [1, 2, 3]})
    before = of(tmp_path / "data")
    shutil.move(tmp_path / "data", tmp_path / "moved")
    now = of(tmp_path / "moved")
    assert Fingerprint.model_validate_json(before.model_dump_json()) == before == now
    assert before.difference(now) is None
    assert [file.name for file in before.files] == ["a.parquet", "day=2/b.parquet"]


@pytest.mark.parametrize(
    ("columns", "groups", "expected"),
    [
        ({"x": [1, 2, 3, 4]}, [4], r"a\.parquet: row_groups 2 before, 1 now|a\.parquet: size \d+ before, \d+ now"),
        ({"x": [1, 2, 3, 4]}, [1, 3], r"a\.parquet: (size|layout) \w+ before, \w+ now"),
        ({"x": [1, 2]}, [1, 1], r"a\.parquet: (size|rows) \d+ before, \d+ now"),
    ],
)
def test_other_contents_differ_in_words(write, columns, groups, expected):
    path = write("a.parquet", {"x": [1, 2, 3, 4]}, groups=[2, 2])
    before = of(path)
    write("a.parquet", columns, groups=groups)
    now = of(path)
    assert before != now
    assert re.search(expected, before.difference(now) or "")


def test_added_file_is_named(write, tmp_path):
    write("a.parquet", {"x": [1]})
    before = of(tmp_path)
    write("b.parquet", {"x": [1]})
    assert before.difference(of(tmp_path)) == "1 files before, 2 now (with b.parquet)"
