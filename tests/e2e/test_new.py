"""A plug-in of one's own, as its author meets it: the skeleton, the example, the path in a YAML."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from tests.e2e.test_examples import made_up
from torchrec_mtl import registry
from torchrec_mtl.config.load import ConfigError, load_config
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.scaffold.names import Names
from torchrec_mtl.scaffold.write import write_skeleton
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train

KINDS = {"head": "head", "bottom": "bottom", "loss": "tasks.2.loss", "rule": "gradient"}
EXAMPLE = {"head": "mtl_cross_stitch.head:CrossStitch", "gradient": "mtl_cross_stitch.rule:RandomWeights"}


def run(command, cwd, environment, timeout=240):
    return subprocess.run(
        command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )


@pytest.fixture
def environment(tmp_path):
    """An environment with all that this one has, into which something can be installed without touching this one."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "all_of_the_other.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, module in (("pip", "pip"), ("torchrec-mtl", "torchrec_mtl")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    without = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    # Offline, with the setuptools that is there. (Of this option, 0 means: no isolation.)
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**without, **offline, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_steps_that_new_prints_lead_to_a_trained_head(cli, environment, tmp_path):
    made = cli("new", "head", "my_head", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    steps = re.findall(r"^  (.+)$", made.stdout.split("next:")[1], re.MULTILINE)
    assert steps[0] == "cd my_head"
    assert len(steps) == 4
    folder = tmp_path / "my_head"
    outputs = []
    for step in steps[1:]:
        done = run(step, folder, environment)
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert "4 passed" in outputs[1]
    assert "warning" not in outputs[1]
    assert (folder / "runs" / "my_head" / "metrics.json").is_file()
    commands = re.findall(r"^\$ (.+)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert commands == steps[1:]
    again = cli("new", "head", "my_head", cwd=tmp_path)
    assert again.returncode == 1
    assert "there is a head" in again.stderr or "my_head is there, and not empty" in again.stderr


@pytest.mark.slow
def test_the_example_is_found_by_its_names_once_it_is_installed(repository, environment, tmp_path):
    folder = tmp_path / "custom_head"  # a copy: a build leaves things beside its sources
    shutil.copytree(repository / "examples" / "custom_head", folder)
    off = environment | {registry.SWITCH: "off"}  # what was installed on purpose stays
    outputs = []
    for step in ("pip install .", "torchrec-mtl list heads", "torchrec-mtl config show train.yaml data.prepare=null"):
        done = run(step, folder, off)
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert "cross_stitch   mtl_cross_stitch.head:CrossStitch" in outputs[1]
    shown = yaml.safe_load(outputs[2])
    assert shown["head"] == {"type": "cross_stitch", "layers": [128, 64], "tower": [32], "own": 0.9, "norm": "none"}
    assert shown["gradient"]["type"] == "random_weights"


@pytest.mark.slow
def test_the_tests_of_the_example_and_of_every_skeleton_pass(repository, tmp_path):
    for kind in KINDS:
        write_skeleton(Names(kind, f"new_{kind}"), tmp_path / kind)
    packages = [repository / "examples" / "custom_head", *(tmp_path / kind for kind in KINDS)]
    tests = [str(test) for package in packages for test in sorted(package.glob("tests/test_*.py"))]
    doctests = [str(module) for package in packages[1:] for module in package.glob("mtl_*/*.py")]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words, "--import-mode=importlib", "--doctest-modules", *tests, *doctests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages)), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 19


def train_some(config):
    with process_group("cpu") as device, open(os.devnull, "w") as nothing:
        return train(config, device, console=Console(file=nothing))


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_trains_by_its_path_and_every_line_of_its_yaml_is_right(kind, tmp_path, monkeypatch):
    names = Names(kind, f"trained_{kind}")
    write_skeleton(names, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = f"{names.package}.{kind}:{names.class_name}"
    monkeypatch.setattr(registry, "_installed", lambda group: {names.name: path} if f".{kind[:4]}" in group else {})
    rows = tmp_path / "rows.parquet"
    pq.write_table(make_table(600, seed=0), rows)
    files = [f"data.{split}={rows}" for split in ("train", "eval", "test")]
    words = [*files, "data.prepare=null", "train.epochs=1", "train.references=false"]
    by_name = load_config(tmp_path / "train.yaml", [*words, f"run_dir={tmp_path / 'run'}"])
    by_path = load_config(tmp_path / "train.yaml", [*words, f"run_dir={tmp_path / 'path'}", f"{KINDS[kind]}={path}"])
    found = [train_some(config).evaluation.tasks for config in (by_name, by_path)]
    assert found[0] == found[1]
    assert set(found[0]) == {"click", "long_view", "watch_time"}
    monkeypatch.setenv(registry.SWITCH, "off")
    with pytest.raises(ConfigError, match=f"{kind} '{path}' is code that the config brings in"):
        load_config(tmp_path / "train.yaml", [*words, f"{KINDS[kind]}={path}"])


def test_the_example_trains_by_paths_alone_and_not_where_code_of_configs_is_refused(repository, tmp_path, monkeypatch):
    folder = repository / "examples" / "custom_head"
    monkeypatch.syspath_prepend(folder)
    rows = tmp_path / "rows.parquet"
    words = [f"data.{split}={rows}" for split in ("train", "eval", "test")]
    words += ["data.batch_size=128", "train.epochs=1", "train.references=false", f"run_dir={tmp_path / 'run'}"]
    words += [f"{section}.type={path}" for section, path in EXAMPLE.items()]
    config = load_config(folder / "train.yaml", words)
    pq.write_table(made_up(config), rows)
    result = train_some(config)
    assert result.step == 2
    assert set(result.evaluation.tasks) == {"buys_again", "buys_twice", "spend"}
    monkeypatch.setenv(registry.SWITCH, "off")
    with pytest.raises(ConfigError, match="is code that the config brings in") as error:
        load_config(folder / "train.yaml", words)
    for kind, path in zip(("head", "rule"), EXAMPLE.values()):
        assert f"{kind} '{path}' is code" in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head", "htlnet"], "there is a head 'htlnet' already"),
        (["head", "MyHead"], "such as 'my_head'"),
        (["rule", "fine", "--out", "taken"], "taken is there, and not empty"),
        (["rule", "fine", "--out", "taken/file"], "taken/file is no folder"),
        (["rule", "fine", "--out", "taken/file/deeper"], "taken/file"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_lost(cli, tmp_path, words, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    done = cli("new", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["taken", "taken/file"]
    assert Path(tmp_path / "taken" / "file").read_text() == "mine"
