"""The skeleton on disk: whole or not there, and of the form that the example has."""

import tomllib
from pathlib import Path

import pytest

from torchrec_mtl.scaffold import write
from torchrec_mtl.scaffold.names import Names
from torchrec_mtl.scaffold.write import write_skeleton

EXAMPLE = Path(__file__).parents[3] / "examples" / "custom_head"
KINDS = ("head", "bottom", "loss", "rule")


def files(folder):
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and not {"__pycache__", ".pytest_cache"} & set(p.parts) and ".egg-info" not in str(p)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_written_whole_and_nothing_beside_it(kind, tmp_path):
    found = write_skeleton(Names(kind, "mine"), tmp_path / "deep" / "mine")
    assert {str(p) for p in found} == files(tmp_path / "deep" / "mine")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["mine"]
    for path in found:
        text = (tmp_path / "deep" / "mine" / path).read_text()
        assert "${" not in text
        assert all(len(line) <= 120 for line in text.splitlines()), path
        if path.suffix == ".py":
            compile(text, str(path), "exec")


def test_an_empty_folder_is_filled_and_stays_the_folder_that_it_was(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    before = folder.stat().st_ino
    monkeypatch.chdir(folder)
    write_skeleton(Names("head", "mine"), Path("."))
    assert (folder / "pyproject.toml").is_file()
    assert folder.stat().st_ino == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("there", ["file", "link", "full"])
def test_what_is_there_is_left_alone(there, tmp_path):
    folder = tmp_path / "mine"
    if there == "full":
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    elif there == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to(tmp_path / "nowhere")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="--out"):
        write_skeleton(Names("head", "mine"), folder)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(template, names):
        if template == "train.yaml":
            raise OSError("No space left on device")
        return ""

    monkeypatch.setattr(write, "_filled", fail)
    with pytest.raises(OSError, match="No space"):
        write_skeleton(Names("head", "mine"), tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def renamed(paths, package, stem):
    return {path.replace(package, stem) for path in paths}


def test_the_example_has_the_form_of_a_skeleton(tmp_path):
    """A head and a rule in one package; its rows are CDNOW's, so that it has no ``prepare.py`` of its own."""
    wanted, tables = {}, {}
    for kind in ("head", "rule"):
        write_skeleton(Names(kind, "mine"), tmp_path / kind)
        wanted |= dict.fromkeys(renamed(files(tmp_path / kind), "mtl_mine", "package"))
        tables[kind] = tomllib.loads((tmp_path / kind / "pyproject.toml").read_text())
    assert renamed(files(EXAMPLE), "mtl_cross_stitch", "package") == set(wanted) - {"prepare.py"}
    example = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    for kind, table in tables.items():
        group = f"torchrec_mtl.{kind}s"
        assert set(table["project"]["entry-points"]) == {group}
        [path] = example["project"]["entry-points"][group].values()
        assert path.startswith(f"mtl_cross_stitch.{kind}:")
        for own in (table, example):
            own["project"] = {
                k: v for k, v in own["project"].items() if k not in {"entry-points", "name", "description"}
            }
            own["tool"]["setuptools"] = set(own["tool"]["setuptools"])
        assert table == example
        example = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
