"""The documents' commands and Python, run as they stand."""

import re
import shutil
import subprocess

import pytest

from tests.walkthrough import as_in_a_clone, steps, take


def blocks(repository, language, document="README.md"):
    text = (repository / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


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
    typed = steps(repository / "README.md")
    as_in_a_clone(tmp_path)
    for step in typed:
        take(step, tmp_path)
    assert len(typed) >= 7
    assert (tmp_path / "runs" / "scores.parquet").exists()


def test_the_python_of_the_readme_runs(repository):
    names = {}  # a later block goes on where an earlier one ended
    for block in blocks(repository, "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert int(names["hook"].steps) == 1


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
