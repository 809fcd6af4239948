from pathlib import Path

import pytest

from torchrec_mtl.data.files import open_files

ROW = {"x": [1, 2, 3]}


def names(files):
    return [Path(file.path).name for file in files]


def test_folder_takes_parquet_below_but_no_hidden_files(write, tmp_path):
    for name in ("b.parquet", "day=1/a.parquet", "_tmp/c.parquet", ".hidden.parquet"):
        write(name, ROW)
    (tmp_path / "_SUCCESS").touch()
    assert names(open_files([str(tmp_path)])) == ["b.parquet", "a.parquet"]


def test_glob_matches_part_by_part(write, tmp_path):
    for name in ("a.parquet", "b.parquet", "sub/a.parquet", "sub/deep/a.parquet"):
        write(name, ROW)
    assert names(open_files([f"{tmp_path}/*.parquet"])) == ["a.parquet", "b.parquet"]
    assert len(open_files([f"{tmp_path}/**/a.parquet"])) == 3
    assert len(open_files([f"{tmp_path}/*/a.parquet"])) == 1
    assert len(open_files([f"{tmp_path}/s*"])) == 2  # a folder that matches


def test_list_is_sorted_and_without_repetition(write, tmp_path):
    paths = [str(write(name, ROW)) for name in ("b.parquet", "a.parquet")]
    assert names(open_files([*paths, str(tmp_path), f"{tmp_path}/x/../a.parquet"])) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/a.parquet", "/**"])
def test_uri_finds_what_the_path_finds(write, tmp_path, pattern):
    write("a.parquet", ROW)
    assert names(open_files([f"file://{tmp_path}{pattern}"])) == ["a.parquet"]


def test_name_with_brackets_is_a_file_before_it_is_a_glob(write):
    assert names(open_files(str(write("a[1].parquet", ROW)))) == ["a[1].parquet"]


def test_relative_path(write, tmp_path, monkeypatch):
    write("a.parquet", ROW)
    monkeypatch.chdir(tmp_path)
    assert names(open_files(["a.parquet"])) == names(open_files(["./*.parquet"])) == ["a.parquet"]


def test_row_groups_and_schema_come_from_the_footer(write):
    (file,) = open_files([str(write("a.parquet", {"x": [1, 2, 3], "s": ["a", "b", "a"]}, groups=[2, 1]))])
    assert file.row_groups == (2, 1)
    assert file.schema.names == ["x", "s"]
    assert file.read_row_group(1, ["s"]).to_pylist() == [{"s": "a"}]


def test_every_bad_file_is_named(write, tmp_path):
    whole = write("whole.parquet", ROW).read_bytes()
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.parquet").write_text("user,item\n1,2\n")
    with pytest.raises(ValueError, match="whole Parquet file") as error:
        open_files([str(tmp_path), str(tmp_path / "nowhere.parquet"), f"{tmp_path}/none-*.parquet"])
    message = str(error.value)
    assert "nowhere.parquet: no Parquet file found" in message
    assert "none-*.parquet: no Parquet file found" in message
    assert "/empty.parquet: empty file (0 bytes)" in message
    assert "/cut.parquet: not a whole Parquet file of" in message
    assert "/text.parquet: not a whole Parquet file of" in message
    assert "/whole.parquet" not in message


def test_no_rows_at_all_is_an_error(write):
    path = write("a.parquet", {"x": []})
    with pytest.raises(ValueError, match=r"a\.parquet: no rows"):
        open_files([str(path)])


def test_unknown_scheme_is_named():
    with pytest.raises(ValueError, match=r"nosuch://bucket/a\.parquet: no filesystem opens this URI"):
        open_files(["nosuch://bucket/a.parquet"])


def test_damaged_data_names_file_and_row_group(write):
    path = write("a.parquet", {"x": list(range(1000))}, groups=[500, 500])
    (file,) = open_files([str(path)])
    data = bytearray(path.read_bytes())
    data[4:3000] = bytes(2996)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet: row group 0 cannot be read"):
        file.read_row_group(0, ["x"])
