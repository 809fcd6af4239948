"""The commands of a page, run by a test as a reader would type them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.documents import blocks

ROOT = Path(__file__).resolve().parents[1]
# What sets up, and what does not come back.
LEFT_OUT = ("make ", "source ", "torchrec-mtl serve")


@dataclass(frozen=True)
class Step:
    """A command of a console block.

    Attributes:
        command: behind the ``$``, without comment.
        shown: the lines below it on the page, which it must print; empty: anything.
    """

    command: str
    shown: tuple[str, ...]


def steps(page: Path) -> list[Step]:
    """The commands of a page that can be run, in order."""
    found = []
    for block in blocks(page):
        if block.language != "console" or block.reason is not None:
            continue
        for part in ("\n" + block.text).split("\n$ ")[1:]:
            command, *shown = part.rstrip().split("\n")
            found.append(Step(command.split("  #")[0].strip(), tuple(shown)))
    return [step for step in found if not step.command.startswith(LEFT_OUT)]


def as_in_a_clone(folder: Path) -> Path:
    """Let a temporary folder look like the root of the repository, with runs of its own."""
    for name in ("examples", "benchmarks", "components", "data", ".torchxconfig"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def take(step: Step, folder: Path) -> None:
    """Run a step in the environment of the tests; one that shows an error must fail with it.

    Raises:
        AssertionError: it ends with another status, or prints something else.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        step.command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    _compare(step, done.returncode, f"{done.stdout}\n{done.stderr}")


def take_here(step: Step) -> None:
    """Run a ``torchrec-mtl`` step within this process, in its folder: without a start, which takes longest.

    Raises:
        AssertionError: as `take`.
    """
    from typer.testing import CliRunner

    from torchrec_mtl.cli import app

    program, *words = shlex.split(step.command)
    assert program == "torchrec-mtl", step.command
    done = CliRunner().invoke(app, words)
    _compare(step, done.exit_code, f"{done.output}\n{done.exception or ''}")


def _compare(step: Step, status: int, said: str) -> None:
    expected = int(any(line.startswith("error:") for line in step.shown))
    assert status == expected, f"{step.command}\n{said[-5000:]}"
    for line in step.shown:
        assert line in said.splitlines(), f"{step.command}: no line '{line}' in\n{said[-5000:]}"
