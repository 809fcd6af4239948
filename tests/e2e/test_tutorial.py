"""The tutorial, as a page and as a notebook: what it says to type is typed."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.documents import Block, blocks, run_python
from tests.walkthrough import ROOT, Step, as_in_a_clone, steps, take_here

PAGE = ROOT / "docs" / "tutorial.md"
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"

needs_data = pytest.mark.skipif(
    not (ROOT / "data" / "cdnow" / "train.parquet").exists(),
    reason="data/cdnow is missing: `make test` makes it, or `python examples/cdnow/prepare.py`",
)


@pytest.mark.slow
@needs_data
def test_the_tutorial_works_from_the_first_command_to_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(as_in_a_clone(tmp_path))
    (name, text), *others = re.findall(r"Save this as `(.+?)`.*?```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert not others
    Path(name).write_text(text)
    # What `make train` does behind the set-up; one epoch is enough here.
    typed = [Step("torchrec-mtl train examples/cdnow/htlnet.yaml", ()), *steps(PAGE)]
    for step in typed:
        shorter = " train.epochs=1" if step.command.startswith("torchrec-mtl train examples/") else ""
        take_here(Step(step.command + shorter, step.shown))
    assert len(typed) >= 11
    assert sum(bool(step.shown) for step in typed) >= 2
    for made in ("compare.html", "scores.parquet", "bundle", "bundle-scores.parquet"):
        assert (tmp_path / "runs" / made).exists(), made
    [python] = [block for block in blocks(PAGE) if block.language == "python"]
    assert set(run_python([python])["scores"]) == {"buys_again", "spend"}


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
@needs_data
def test_the_notebook_runs(tmp_path, monkeypatch):
    import matplotlib as mpl

    monkeypatch.chdir(as_in_a_clone(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    before = mpl.get_backend(auto_select=False)
    mpl.use("agg")
    try:
        code = [Block(NOTEBOOK, 1, "python", "".join(cell["source"]), None) for cell in cells("code")]
        names = run_python(code)
    finally:
        mpl.use(before or "agg")
    assert list(names["scores"]) == ["buys_again", "buys_twice", "spend"]
    assert 0.5 < names["metrics"].loc["buys_again", "auc"] < 1


def test_the_notebook_is_small_and_holds_no_output():
    assert NOTEBOOK.stat().st_size < 20_000
    assert cells("code")
    assert cells("markdown")
    for cell in cells("code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
