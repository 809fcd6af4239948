"""The wheel: built offline from the working tree, it holds what users import and what TorchX finds."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA_FILES = {".py", ".yaml", ".typed", ".tmpl"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the unpacked wheel, as in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    _link_tree(source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*pip, "-w", folder, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_module_and_the_examples(site):
    expected = {path.relative_to(ROOT) for path in (ROOT / "torchrec_mtl").rglob("*")}
    for folder in ("components", "examples/cdnow", "examples/movielens"):
        expected |= {Path("torchrec_mtl") / path.relative_to(ROOT) for path in (ROOT / folder).iterdir()}
    expected = {path for path in expected if path.suffix in DATA_FILES}
    found = {path.relative_to(site) for path in (site / "torchrec_mtl").rglob("*") if path.is_file()}
    assert found == expected


def test_the_wheel_installs_one_top_level_package(site):
    assert [path.name for path in site.iterdir() if path.suffix != ".dist-info"] == ["torchrec_mtl"]


def test_the_licence_and_the_entry_points_are_declared(site):
    [info] = site.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").is_file()
    entry_points = configparser.ConfigParser(delimiters=["="])
    entry_points.read(info / "entry_points.txt")
    assert dict(entry_points["console_scripts"]) == {"torchrec-mtl": "torchrec_mtl.cli:main"}
    assert set(entry_points["torchx.components"]) == {"mtl", "_torchx"}


def test_torchx_finds_our_components_and_keeps_its_own(site, tmp_path):
    script = "from torchx.specs.finder import get_components; print(*get_components())"
    names = _python(site, tmp_path, "-c", script).split()
    ours = {f"mtl.{name}" for name in ("dmmp", "dtrn", "htlnet", "ncs4cvr", "shared_bottom", "train")}
    assert {*ours, "dist.ddp", "utils.echo"} <= set(names)
    assert not [name for name in names if "._" in name]


@pytest.mark.parametrize(
    ("name", "example", "prepare"),
    [
        ("dtrn", "movielens", "prepare.py"),
        ("dmmp", "movielens", "prepare_retrieval.py"),
        ("htlnet", "cdnow", "prepare.py"),
    ],
)
def test_the_installed_component_runs_the_installed_example(site, tmp_path, name, example, prepare):
    if not (ROOT / "examples" / example / f"{name}.yaml").is_file():
        pytest.skip("no example config in this tree")
    folder = site / "torchrec_mtl" / "examples" / example
    script = f"from torchrec_mtl.components.train import {name} as f; print(f().roles[0].args[1])"
    command = _python(site, tmp_path, "-c", script)
    assert str(folder / f"{name}.yaml") in command
    load = f"from torchrec_mtl.config.load import load_config; print(load_config({command.split()[-1]!r}).data.prepare)"
    assert _python(site, tmp_path, "-c", load).strip() == str(folder / prepare)


def _link_tree(target: Path) -> None:
    """Builds must not write into the working tree: setuptools leaves build/ and *.egg-info beside its sources."""
    target.mkdir()
    names = ["pyproject.toml", "README.md", "LICENSE", "torchrec_mtl", "components", "examples"]
    for name in names:
        (target / name).symlink_to(ROOT / name)


def _python(site: Path, cwd: Path, *args: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout
