"""What is wrong with a bundle is told, before anything of it is used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchrec_mtl.serving.bundle import ABOUT, _digest, read_about, write_about
from torchrec_mtl.serving.predictor import Predictor


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def about(folder: Path, change: Callable[[Any], None]) -> None:
    content = json.loads((folder / ABOUT).read_text())
    change(content)
    content["digest"] = _digest(content)
    (folder / ABOUT).write_text(json.dumps(content))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def table(folder: Path) -> Path:
    return next((folder / "tables").iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / ABOUT).unlink(), r"no bundle in .*: there is no bundle\.json; torchrec-mtl export writes one"),
        (lambda b: (b / ABOUT).write_text("{"), r"bundle\.json cannot be read"),
        (lambda b: (b / ABOUT).write_text("[]"), r"is of something else than a bundle"),
        (
            lambda b: about(b, lambda a: a.update(format=2)),
            r"has format 2 \(written by torchrec_mtl 0.*reads formats 1 to 1",
        ),
        (lambda b: about(b, lambda a: a.update(format="1")), r"has format '1'"),
        (lambda b: about(b, lambda a: a.pop("layout")), r"bundle\.json is damaged: layout: Field required"),
        (lambda b: about(b, lambda a: a.update(more=1)), r"is damaged: more: Extra inputs"),
        (lambda b: flip(b / "programs" / "rows.pt2"), r"is damaged: rows\.pt2 is not what was written"),
        (lambda b: flip(b / "statistics.json"), r"is damaged: statistics\.json is not what was written"),
        (lambda b: flip(table(b)), r"is damaged: dim8-bits32\.npy is not what was written"),
        (lambda b: table(b).unlink(), r"is damaged: dim8-bits32\.npy cannot be read"),
        (
            lambda b: about(b, lambda a: a["sha256"].pop("programs/rows.pt2")),
            r"is not whole: it has no programs/rows\.pt2",
        ),
        (
            lambda b: about(b, lambda a: a["sha256"].update({"../x": "0"})),
            r"names the file '\.\./x', which lies elsewhere",
        ),
        (
            lambda b: about(b, lambda a: a["layout"]["files"][0].update(name="../../x.npy")),
            r"files\.0\.name: String should",
        ),
        (lambda b: about(b, lambda a: a["layout"]["files"][0].update(name="/x.npy")), r"files\.0\.name: String should"),
        (lambda b: about(b, lambda a: a["layout"]["files"][0].update(name="other.npy")), r"has no tables/other\.npy"),
        (lambda b: about(b, lambda a: a["sha256"].pop("statistics.json")), r"is not whole: it has no statistics\.json"),
        (
            lambda b: (b / ABOUT).write_text((b / ABOUT).read_text().replace('"step": ', '"step": 1')),
            "is not what was written",
        ),
    ],
)
def test_damage_is_told(copy: Path, damage: Callable[[Path], None], message: str):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        Predictor.load(copy)


def test_tables_that_are_something_else_are_told(copy: Path):
    np.save(table(copy), np.zeros((3, 8), np.float32))
    write_about(copy, read_about(copy))
    with pytest.raises(ValueError, match=r"holds \(3, 8\) float32, and the bundle says \(\d+, 8\)"):
        Predictor.load(copy)
    np.save(table(copy), np.array([{}]), allow_pickle=True)
    write_about(copy, read_about(copy))
    with pytest.raises(ValueError, match="cannot read"):
        Predictor.load(copy)


def test_tables_may_be_left_unread(copy: Path):
    flip(table(copy))
    Predictor.load(copy, check_tables=False)


def test_native_code_runs_only_where_there_is_some(copy: Path):
    with pytest.raises(ValueError, match="has no native code; export it with --compile"):
        Predictor.load(copy, compiled=True)


def test_what_is_no_bundle_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ValueError, match="no bundle in"):
            Predictor.load(path)
