"""A file is the old one or the new one, never a part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchrec_mtl.atomic import whole_file, write_text


def test_text_is_written_and_replaced(tmp_path: Path) -> None:
    for text in ("one\n", "größer\n"):
        write_text(tmp_path / "file", text)
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_what_was_there_outlasts_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with whole_file(out) as partial:
            partial.write_text(text)
            assert not out.exists() or out.read_text() == "one"
        assert out.read_text() == text
    with pytest.raises(ValueError, match=r"^damaged data$"):
        write_a_part(out, ValueError("damaged data"))
    with pytest.raises(ValueError, match=r"^cannot write .*file: No space left on device; name another file$"):
        write_a_part(out, OSError(28, "No space left on device"))
    assert [p.name for p in out.parent.iterdir()] == ["file"]
    assert out.read_text() == "two"


def write_a_part(out: Path, error: Exception) -> None:
    with whole_file(out) as partial:
        partial.write_text("a part")
        raise error


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "it is no file"), ("file/out", "what should be its folder is a file"), ("x" * 300, "File name too long")],
)
def test_where_no_file_can_be_is_told(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=rf"^cannot write .*: {reason}; name another"), whole_file(tmp_path / name):
        raise AssertionError("is not reached")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
