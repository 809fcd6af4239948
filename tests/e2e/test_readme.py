"""The documents' commands and Python, run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# `make test` would run this test; `make train` is the same run as the torchx line, with the set-up before it.
_LEFT_OUT = ("make test", "make train", "source ", "torchrec-mtl serve")


def blocks(repository, language, document="README.md"):
    text = (repository / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(repository):
    lines = [line for block in blocks(repository, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [line[2:].split("  #")[0].strip() for line in lines]


def test_the_quick_start_is_short(repository):
    quick_start = (repository / "README.md").read_text().split("## Quick start")[1].split("\n## ")[0]
    console = [
        line for block in re.findall(r"```console\n(.*?)```", quick_start, re.DOTALL) for line in block.splitlines()
    ]
    assert 0 < len(console) <= 30


@pytest.mark.slow
def test_the_quick_start_runs(repository, tmp_path):
    if not (repository / "data" / "cdnow" / "train.parquet").exists():
        pytest.skip("data/cdnow is missing: `make test` makes it, or `python examples/cdnow/prepare.py`")
    for name in ("examples", "benchmarks", "components", "data", ".torchxconfig"):
        (tmp_path / name).symlink_to(repository / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for command in commands(repository):
        if command.startswith(_LEFT_OUT):
            continue
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        ran += 1
    assert ran >= 7
    assert (tmp_path / "runs" / "scores.parquet").exists()


def test_the_python_of_the_readme_runs(repository):
    names = {}  # a later block goes on where an earlier one ended
    for block in blocks(repository, "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert int(names["hook"].steps) == 1


def test_the_python_of_the_gradient_rules_runs(repository):
    found = blocks(repository, "python", "docs/gradient_rules.md")
    for block in found:
        exec(compile(block, "gradient_rules.md", "exec"), {})
    assert len(found) == 2


def test_the_yaml_of_the_readme_is_a_config(repository, tmp_path):
    from torchrec_mtl.config.load import load_config

    for i, block in enumerate(blocks(repository, "yaml")):
        (tmp_path / f"{i}.yaml").write_text(block)
        assert load_config(tmp_path / f"{i}.yaml").task_names[-1] == "watch_time"


def test_links_of_the_documents_lead_somewhere(repository):
    for document in (repository / "README.md", repository / "CONTRIBUTING.md", *(repository / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_make_is_there_for_the_two_commands(repository):
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    for target in ("train", "test"):
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=repository, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
