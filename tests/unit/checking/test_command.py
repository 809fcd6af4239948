"""The command: exit status, JSON, text, and what it says where there are no data."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.unit.checking.planted import EVAL, TRAIN, changed, config, numbers, report, write
from torchrec_mtl.checking.report import from_json, to_json
from torchrec_mtl.checking.text import render
from torchrec_mtl.cli import app


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "train.parquet", TRAIN)
    write(tmp_path / "eval.parquet", EVAL)
    return config(tmp_path)


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_clean_data_end_with_status_0(file: Path) -> None:
    done = check(file)
    assert done.exit_code == 0, done.output
    assert f"{file}: nothing to complain of" in done.stdout.replace("\n", " ")
    assert "reading train: 2,000 rows of 1 file\n" in done.stderr


def test_an_error_ends_with_status_1_and_all_is_printed(file: Path, tmp_path: Path) -> None:
    item = numbers(TRAIN, "item_id")
    item[0] = 70
    write(tmp_path / "train.parquet", changed(TRAIN, item_id=item))
    done = check(file)
    assert done.exit_code == 1
    assert "error    train: feature 'item_id': 1 ids" in done.stdout
    assert done.stdout.rstrip().endswith("1 error")
    assert check(file, "data.bad_ids=drop").exit_code == 0


def test_strict_counts_warnings(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", changed(TRAIN, hour=np.zeros(len(TRAIN))))
    assert check(file).exit_code == 0
    assert check(file, "--strict").exit_code == 1


def test_json_stands_alone_and_is_written(file: Path, tmp_path: Path) -> None:
    done = check(file, "--json", "--out", tmp_path / "check.json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "check.json").read_text())


def test_the_keys_of_the_json_are_those_of_the_document(tmp_path: Path) -> None:
    found = json.loads(to_json(report(tmp_path)))
    document = (Path(__file__).parents[3] / "docs" / "check.md").read_text()
    sections = {key: value[0] for key, value in found.items() if isinstance(value, list) and value}
    assert set(found) == {
        *("config", "splits", "tables", "features", "dense", "labels", "day_column", "days", "leaks", "overlap"),
        "findings",
    }
    for section, record in sections.items():
        assert f"`{section}`" in document
        missing = [key for key in record if f"`{key}`" not in document]
        assert missing == [], section
    lengths = next(f["lengths"] for f in found["features"] if f["lengths"])
    assert [key for key in lengths if f"`{key}`" not in document] == []


def test_json_comes_back(tmp_path: Path) -> None:
    found = report(tmp_path, changed(TRAIN, hour=np.zeros(len(TRAIN))))
    assert from_json(to_json(found)) == found


def test_lines_are_no_wider_than_a_terminal(tmp_path: Path) -> None:
    text = render(report(tmp_path, changed(TRAIN, hour=np.zeros(len(TRAIN)), item_id=np.full(len(TRAIN), 10**6))))
    # The paths of a temporary folder are as long as they are.
    assert [line for line in text.splitlines() if len(line) > 120 and str(tmp_path) not in line] == []


def test_data_that_a_script_would_make(file: Path, tmp_path: Path) -> None:
    (tmp_path / "prepare.py").write_text("raise SystemExit('run, and should not be')")
    (tmp_path / "train.parquet").unlink()
    done = check(file, "data.prepare=prepare.py", "--json")
    assert done.exit_code == 1
    (finding,) = [f for f in json.loads(done.stdout)["findings"] if f["level"] == "error"]
    assert (finding["kind"], finding["files"]) == ("missing", [str(tmp_path / "train.parquet")])
    assert finding["advice"].endswith(f"{tmp_path / 'prepare.py'} --out {tmp_path}")
    assert [s["split"] for s in json.loads(done.stdout)["splits"]] == ["eval"]


def test_without_any_data_there_are_no_figures(file: Path, tmp_path: Path) -> None:
    for name in ("train", "eval"):
        (tmp_path / f"{name}.parquet").unlink()
    done = check(file)
    assert done.exit_code == 1
    assert done.stdout.startswith("error    train: ")
    assert done.stdout.endswith(f"{file}: 2 errors\n")


def test_data_that_nothing_makes(file: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.parquet").unlink()
    done = check(file)
    assert done.exit_code == 1
    assert "no Parquet file found" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--leak-auc", 0.4), "--leak-auc: expected more than 0.5, and at most 1 (found 0.4)"),
        (("--leak-rows", 0), "--leak-rows: expected 1 or more rows (found 0)"),
        (("--out", "nowhere/check.json"), "--out: there is no folder nowhere; make it, or name another file"),
        (("--day", "clicks"), "does not exist. Did you mean 'click'?"),
        (("head.type=mmo",), "head: unknown head 'mmo'. Did you mean 'mmoe'?"),
    ],
)
def test_mistakes_are_told_in_a_line(file: Path, arguments: tuple[object, ...], message: str) -> None:
    done = check(file, *arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stdout == ""
