"""Ali-CCP's rows: vocabularies, lists, the split, chunks, the refusals, and two steps of training on them."""

import gzip
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from torchrec_mtl.config.load import load_config
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train

FOLDER = Path(__file__).parents[3] / "examples" / "ali_ccp"
SPLITS = ("train", "validation", "test")
WRITTEN = ["mmoe.yaml", "sizes.json", "test.parquet", "train.parquet", "validation.parquet"]
Features = Sequence[tuple[str, int, float]]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ali_ccp_prepare", FOLDER / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(FOLDER))  # as for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


prepare = load_script()
release = prepare.release


def write_list(features: Features) -> str:
    return (
        f"{len(features)},{chr(1).join(f'{field}{chr(2)}{value}{chr(3)}{weight}' for field, value, weight in features)}"
    )


def write_skeleton(path: Path, rows: Sequence[tuple[int, int, int, str, Features]]) -> None:
    lines = [f"{key},{click},{buy},{user},{write_list(features)}\n" for key, click, buy, user, features in rows]
    path.write_text("".join(lines))


def write_common(path: Path, users: Mapping[str, Features]) -> None:
    path.write_text("".join(f"{user},{write_list(features)}\n" for user, features in users.items()))


def item(key: int) -> Features:
    """An impression's features; those with values are there in some rows only, 210 has one or two ids."""
    features = [("205", 4000 + key % 7, 1.0), ("206", 8000, 1.0), ("207", 8400 + key % 3, 1.0)]
    features += [("210", 9000 + number, 1.0) for number in range(key % 2 + 1)]
    features += [("216", 9100 + key % 5, 1.0), ("301", 9300 + key % 3, 1.0), ("999", 1, 1.0)]
    if key % 2:
        features += [("508", 9500, 0.25), ("853", 9600, 0.5), ("853", 9601, 1.5)]
    if key % 3 == 0:
        features += [("509", 9700, 2.0), ("702", 9800, 0.125)]
    return features


def user(number: int) -> Features:
    fields = ("121", "122", "124", "125", "126", "127", "128", "129")
    features = [("101", 100 + number, 1.0), *((field, int(field) * 10 + number % 2, 1.0) for field in fields)]
    for field in release.HISTORIES:
        features += [(field, 500 + position, 3.0 - 0.5 * position) for position in range(number + 1)]
    return features


USERS = {f"user{number:012}": user(number) for number in range(4)}


def rows(count: int, *, first: int = 1) -> list[tuple[int, int, int, str, Features]]:
    keys = range(first, first + count)
    names = list(USERS)
    return [
        (key, int(key % 4 == 0), int(key % 12 == 0), names[key * len(names) // (first + count)], item(key))
        for key in keys
    ]


def write_release(folder: Path, *, train_rows: Sequence, test_rows: Sequence, users: Mapping = USERS) -> Path:
    folder.mkdir(parents=True)
    for split, split_rows in {"train": train_rows, "test": test_rows}.items():
        write_skeleton(folder / f"sample_skeleton_{split}.csv", split_rows)
        write_common(folder / f"common_features_{split}.csv", users)
    return folder


def run(*arguments: str | Path) -> int:
    return int(prepare.main([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ali_ccp") / "release"
    return write_release(folder, train_rows=rows(120), test_rows=rows(40, first=121))


@pytest.fixture(scope="module")
def prepared(source: Path) -> Path:
    out = source.parent / "out"
    assert run("--source", source, "--out", out) == 0
    return out


def read(folder: Path, split: str) -> pa.Table:
    return pq.read_table(folder / f"{split}.parquet")


def whole(folder: Path) -> pa.Table:
    """Train and validation, in the order of the skeleton."""
    return pa.concat_tables([read(folder, split) for split in SPLITS[:2]]).sort_by("sample_id")


def is_validation(keys: Sequence[int], *, seed: int = 0) -> np.ndarray:
    no = pa.array([False] * len(keys))
    table = pa.table({"sample_id": pa.array(keys, pa.int64()), "click": no, "buy": no})
    return np.asarray(prepare.assign(table, splits=SPLITS[:2], seed=seed) == 1)


def prepare_rows(folder: Path, split_rows: Sequence, *options: str, users: Mapping = USERS) -> Path:
    write_release(folder / "release", train_rows=split_rows, test_rows=split_rows[:1], users=users)
    assert run("--source", folder / "release", "--out", folder / "out", *options) == 0
    return folder / "out"


def test_every_row_has_its_impression_and_its_user(prepared: Path) -> None:
    table = whole(prepared)
    assert table["sample_id"].to_pylist() == list(range(1, 121))
    assert table["click"].to_pylist() == [int(key % 4 == 0) for key in range(1, 121)]
    assert table["buy"].to_pylist() == [int(key % 12 == 0) for key in range(1, 121)]
    assert table["f205"].to_pylist() == [key % 7 + 1 for key in range(1, 121)]  # seven values, all frequent
    assert table["f301"].to_pylist() == [key % 3 + 1 for key in range(1, 121)]
    assert table["v508"].to_pylist() == [0.25 * (key % 2) for key in range(1, 121)]
    assert table["f101"].to_pylist() == [key * 4 // 121 + 1 for key in range(1, 121)]
    assert read(prepared, "test")["sample_id"].to_pylist() == list(range(121, 161))


def test_fields_that_are_not_named_are_left_out(prepared: Path) -> None:
    fields = [*release.COMMON_FIELDS, *release.SKELETON_FIELDS]
    names = {"sample_id", "click", "buy", *(f"f{name}" for name in fields), *(f"v{name}" for name in release.VALUED)}
    for split in SPLITS:
        assert set(read(prepared, split).column_names) == names


def test_rare_values_share_id_0(tmp_path: Path) -> None:
    keys = [key for key in range(1, 60) if not is_validation([key])[0]][:25]
    values = [1] * 9 + [2] * 10 + [3] * 6
    made = [(key, 0, 0, "user000000000000", [("205", value, 1.0)]) for key, value in zip(keys, values, strict=True)]
    out = prepare_rows(tmp_path, made)
    assert read(out, "train")["f205"].to_pylist() == [0] * 9 + [1] * 10 + [0] * 6
    assert json.loads((out / "sizes.json").read_text())["tables"]["f205"] == 2


def test_a_common_value_counts_once_for_every_row_of_train(tmp_path: Path) -> None:
    keys = [key for key in range(1, 60) if not is_validation([key])[0]][:19]
    made = [(key, 0, 0, "a" if number < 9 else "b", [("205", 1, 1.0)]) for number, key in enumerate(keys)]
    users = {"a": [("101", 7, 1.0), ("109_14", 5, 1.0)], "b": [("101", 8, 1.0), ("109_14", 6, 1.0)]}
    table = read(prepare_rows(tmp_path, made, users=users), "train")
    assert table["f101"].to_pylist() == [0] * 9 + [1] * 10
    assert table["f109_14"].to_pylist() == [[0]] * 9 + [[1]] * 10


def test_vocabularies_come_from_the_rows_of_train_alone(tmp_path: Path) -> None:
    keys = list(range(1, 401))
    apart = is_validation(keys)
    assert apart.sum() >= 10
    seen = [("205", 1, 1.0)]
    made = [
        (key, 0, 0, "b" if x else "a", [("205", 2, 1.0)] if x else seen) for key, x in zip(keys, apart, strict=True)
    ]
    made += [(401 + number, 0, 1, "c", [("205", 3, 1.0)]) for number in range(20)]  # dropped
    users = {name: [("101", number, 1.0)] for number, name in enumerate("abc")}
    write_release(tmp_path / "in", train_rows=made, test_rows=[(9, 0, 0, "c", [("205", 3, 1.0)])] * 20, users=users)
    assert run("--source", tmp_path / "in", "--out", tmp_path / "out") == 0
    for split, expected in {"train": 1, "validation": 0, "test": 0}.items():
        table = read(tmp_path / "out", split)
        assert set(table["f205"].to_pylist()) == set(table["f101"].to_pylist()) == {expected}


def test_a_buy_without_a_click_is_dropped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [(key, key % 2, key % 3 == 0, "user000000000000", item(key)) for key in range(1, 61)]
    out = prepare_rows(tmp_path, [(key, click, int(buy), name, features) for key, click, buy, name, features in made])
    kept = [key for key in range(1, 61) if key % 2 or key % 3]
    assert whole(out)["sample_id"].to_pylist() == kept
    assert "dropped, with a buy but no click: 10 of train and validation, 0 of test" in capsys.readouterr().out
    splits = json.loads((out / "sizes.json").read_text())["splits"]
    assert sum(splits[split]["rows"] for split in SPLITS[:2]) == 50
    assert splits["train"]["dropped"] == splits["validation"]["dropped"] == 10


def test_lists_keep_the_largest_values_the_largest_last(tmp_path: Path) -> None:
    history = [("109_14", 50, 2.0), ("109_14", 51, 1.0), ("109_14", 52, 4.0), ("109_14", 53, 2.0)]
    made = [(key, 0, 0, "a", [("210", 8, 1.0), ("205", 1, 1.0), ("210", 7, 1.0)]) for key in range(1, 41)]
    table = whole(prepare_rows(tmp_path, made, "--max-length", "3", users={"a": history}))
    # ids 1, 2, ... are those of 50, 52, 53: 51 was cut off, so it was never seen
    assert table["f109_14"].to_pylist() == [[1, 3, 2]] * 40
    assert table["v109_14"].to_pylist() == [9.0] * 40  # of all four
    assert table["f210"].to_pylist() == [[2, 1]] * 40  # equal values: as in the file
    assert table["f853"].to_pylist() == [[]] * 40


def test_a_field_of_one_value_takes_the_last(tmp_path: Path) -> None:
    made = [(key, 0, 0, "a", [("508", 4, 1.0), ("205", 1, 1.0), ("508", 5, 2.0)]) for key in range(1, 41)]
    table = whole(prepare_rows(tmp_path, made, users={"a": [("101", 1, 1.0)]}))
    assert set(table["f508"].to_pylist()) == {1}
    assert set(table["v508"].to_pylist()) == {2.0}


def test_a_tenth_is_validation_by_sample_id_and_seed() -> None:
    keys = list(range(1, 20_001))
    apart = is_validation(keys)
    assert 0.09 < apart.mean() < 0.11
    assert is_validation(keys[::-1])[::-1].tolist() == apart.tolist()
    assert 0.005 < (apart & is_validation(keys, seed=1)).mean() < 0.015


def test_neither_chunks_nor_compression_change_a_row(
    tmp_path: Path, source: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "release" / "sample_train"
    packed.mkdir(parents=True)
    for path in source.iterdir():
        folder = packed if path.stem.endswith("train") else packed.parent
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(release, "CHUNK_BYTES", 1 << 10)  # some lines of the skeleton, and less than one of a user
    assert run("--source", packed.parent, "--out", tmp_path / "out") == 0
    for split in SPLITS:
        assert read(tmp_path / "out", split).equals(read(prepared, split))


def test_a_trial_reads_the_first_rows(tmp_path: Path, source: Path) -> None:
    assert run("--source", source, "--out", tmp_path / "out", "--rows", "30") == 0
    assert whole(tmp_path / "out")["sample_id"].to_pylist() == list(range(1, 31))
    assert read(tmp_path / "out", "test")["sample_id"].to_pylist() == list(range(121, 151))


def test_the_same_files_are_written_again(tmp_path: Path, source: Path, prepared: Path) -> None:
    assert run("--source", source, "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in prepared.iterdir()) == WRITTEN
    for name in (name for name in WRITTEN if name != "mmoe.yaml"):  # which names its folder
        assert (tmp_path / "out" / name).read_bytes() == (prepared / name).read_bytes()


def test_a_stopped_run_leaves_nothing_that_looks_complete(
    tmp_path: Path, source: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / ".partial").mkdir(parents=True)
    (out / ".partial" / "train.parquet").write_bytes(b"of a run that was killed")

    def stop(*_: object, **__: object) -> None:
        assert (out / ".partial" / "train.parquet").stat().st_size > 100
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare.output, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            run("--source", source, "--out", out)
    assert list(out.iterdir()) == []
    assert run("--source", source, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == WRITTEN
    assert all(read(out, split).equals(read(prepared, split)) for split in SPLITS)


def replace_line(number: int, line: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        lines = text.splitlines()
        lines[number - 1] = line
        return "\n".join(lines) + "\n"

    return change


GOOD = "7,0,0,user000000000000,1,205\x024000\x031.0"


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("sample_skeleton_train.csv", "7,0,0,user000000000000,1", "5 columns, looked for 6 (sample_id, click, buy"),
        ("sample_skeleton_train.csv", "", "1 columns, looked for 6"),
        ("sample_skeleton_train.csv", GOOD.replace("7,", "seven,"), "sample_id 'seven' is not a whole number"),
        ("sample_skeleton_test.csv", GOOD.replace(",0,0,", ",0,2,"), "buy '2' is neither 0 nor 1"),
        (
            "sample_skeleton_train.csv",
            GOOD.replace("\x031.0", ""),
            r"feature '205\x024000' is not FIELD\x02ID\x03VALUE",
        ),
        ("sample_skeleton_test.csv", GOOD.replace("4000", "4e3"), r"feature '205\x024e3\x031.0' is not"),
        ("sample_skeleton_train.csv", GOOD.replace("1.0", "one"), r"feature '205\x024000\x03one' is not"),
        ("sample_skeleton_train.csv", GOOD.replace("1.0", "nan"), r"feature '205\x024000\x03nan' is not"),
        ("sample_skeleton_train.csv", GOOD + "\x01", "feature '' is not"),
        ("sample_skeleton_train.csv", "7,0,0,user000000000000,0,", "feature '' is not"),
        ("common_features_train.csv", "user000000000002,1", "2 columns, looked for 3 (common_feature_index"),
        ("common_features_test.csv", "user000000000003,1,101", "feature '101' is not"),
    ],
)
def test_a_malformed_line_is_named(
    tmp_path: Path,
    source: Path,
    name: str,
    line: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    for path in source.iterdir():
        text = path.read_text()
        (folder / path.name).write_text(replace_line(3, line)(text) if path.name == name else text)
    monkeypatch.setattr(release, "CHUNK_BYTES", 200)  # the line is not in the first chunk
    assert run("--source", folder, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"{folder / name}, line 3: {message}" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_files_are_named(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    for path in source.glob("*train*"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert run("--source", folder, "--out", tmp_path / "out") == 1
    assert f"no file sample_skeleton_test.csv or sample_skeleton_test.csv.gz in {folder}" in capsys.readouterr().err
    (folder / "sample_test.tar.gz").touch()
    assert run("--source", folder, "--out", tmp_path / "out") == 1
    assert f"unpack {folder / 'sample_test.tar.gz'} first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_key_without_common_features_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = {name: features for name, features in USERS.items() if name != "user000000000002"}
    write_release(tmp_path / "in", train_rows=rows(40), test_rows=rows(4), users=users)
    assert run("--source", tmp_path / "in", "--out", tmp_path / "out") == 1
    assert "no line for 1 of the 4 values of common_feature_index in the skeleton, such as 'user000000000002'" in (
        capsys.readouterr().err
    )


def test_files_that_are_empty_or_cut_off_are_named(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "common_features_train.csv").write_bytes(b"")
    assert run("--source", folder, "--out", tmp_path / "out") == 1
    assert "common_features_train.csv is empty" in capsys.readouterr().err
    (folder / "common_features_train.csv").unlink()
    whole_file = gzip.compress((source / "common_features_train.csv").read_bytes())
    (folder / "common_features_train.csv.gz").write_bytes(whole_file[: len(whole_file) // 2])
    assert run("--source", folder, "--out", tmp_path / "out") == 1
    assert "common_features_train.csv.gz cannot be unpacked" in capsys.readouterr().err


def test_a_count_of_none_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--source", source, "--out", tmp_path / "out", "--min-count", "0") == 1
    assert "--min-count is 0; give a whole number from 1" in capsys.readouterr().err


def test_counts_do_not_depend_on_when_they_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.integers(0, 50, 1000), rng.integers(0, 4, 1000)
    counts = prepare.encoding.Counts()
    for first in range(0, 1000, 100):
        counts.add(values[first : first + 100], weights[first : first + 100])
        counts.frequent(1)  # merges
    totals = np.bincount(values, weights=weights)
    assert counts.frequent(30).tolist() == np.flatnonzero(totals >= 30).tolist()
    assert 0 < len(counts.frequent(30)) < 50


def test_the_yaml_reads_every_field_and_no_label() -> None:
    config = yaml.safe_load((FOLDER / "mmoe.yaml").read_text(encoding="utf-8"))
    fields = {f"f{name}" for name in (*release.COMMON_FIELDS, *release.SKELETON_FIELDS)}
    assert {table["name"] for table in config["features"]["tables"]} == fields
    assert {feature["name"] for feature in config["features"]["sparse"]} == fields
    assert {feature["name"] for feature in config["features"]["dense"]} == {f"v{name}" for name in release.VALUED}


def test_the_written_yaml_has_the_sizes_and_trains_two_steps(tmp_path: Path, prepared: Path) -> None:
    sizes = json.loads((prepared / "sizes.json").read_text())["tables"]
    overrides = ["data.batch_size=64", f"run_dir={tmp_path / 'run'}", "train.references=false"]
    config = load_config(prepared / "mmoe.yaml", overrides)
    assert {table.name: table.rows for table in config.features.tables} == sizes
    with process_group("cpu") as device, (tmp_path / "log").open("w") as log:
        result = train(config, device, console=Console(file=log))
    assert result.step == 2
    assert set(result.evaluation.tasks) == {"click", "buy"}
