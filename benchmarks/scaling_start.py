"""From the start of a process to the first trained step, and to the help text, as a user types the commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.measured import Aim, Figure, Sides, Spread, interleave, ratios
from benchmarks.scaling_workload import Workload
from torchrec_mtl.config.load import dump

_ROWS, _POLL_S, _TIMEOUT_S = 20_000, 0.005, 120.0
_STEP_AIM, _HELP_AIM = Aim("at most", 6.0, of="value"), Aim("at most", 1.0, of="value")
_FIRST, _HELP, _IMPORTS, _PYTHON = (
    "import to first step",
    "--help",
    "import torch, torchrec",
    "python that does nothing",
)


def start_up(workload: Workload, folder: Path, repeats: int) -> list[Figure]:
    """Return seconds to the first step and to the help, each against the least that it could take."""
    train = _write(workload, folder)
    runs = (folder / f"run{i}" for i in range(repeats + 1))
    module = [sys.executable, "-m", "torchrec_mtl"]
    sides: Sides = {
        _FIRST: lambda: first_step(module, replace(workload, train=str(train), run_dir=str(next(runs)))),
        _IMPORTS: lambda: whole([sys.executable, "-c", "import torch, torchrec"]),
        _HELP: lambda: whole([*module, "--help"]),
        _PYTHON: lambda: whole([sys.executable, "-c", "pass"]),
    }
    times = interleave(sides, repeats)
    note = f"{workload.head}, {_ROWS:,} rows, batch {workload.batch}"
    return [
        Figure(
            _FIRST,
            Spread.of(times[_FIRST]),
            "s",
            ratios(times[_FIRST], times[_IMPORTS]),
            _IMPORTS,
            _STEP_AIM,
            note,
        ),
        Figure(_IMPORTS, Spread.of(times[_IMPORTS]), "s"),
        Figure(_HELP, Spread.of(times[_HELP]), "s", ratios(times[_HELP], times[_PYTHON]), _PYTHON, _HELP_AIM),
        Figure(_PYTHON, Spread.of(times[_PYTHON]), "s"),
    ]


def first_step(module: Sequence[str], workload: Workload) -> float:
    """Return the seconds from the start of ``train`` to the line that its first step logs."""
    metrics = Path(workload.run_dir) / "metrics.jsonl"
    config = Path(workload.run_dir).with_suffix(".yaml")
    config.write_text(dump(workload.config(log_every=1, max_steps=2)), encoding="utf-8")
    start = time.perf_counter()
    with subprocess.Popen(
        [*module, "train", str(config)], env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not metrics.is_file() or not metrics.stat().st_size:
            if process.poll() is not None or time.perf_counter() - start > _TIMEOUT_S:
                process.kill()
                raise RuntimeError(f"no step was logged; the run said:\n{process.communicate()[0]}")
            time.sleep(_POLL_S)
        took = time.perf_counter() - start
        process.communicate()
    return took


def whole(words: Sequence[str]) -> float:
    """Return the seconds of a process from its start to its end."""
    start = time.perf_counter()
    subprocess.run(words, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def imports_by_package(workload: Workload, folder: Path, largest: int = 12) -> list[Figure]:
    """Return the seconds that ``train`` spends importing each package, the largest first."""
    train, config = _write(workload, folder), folder / "imports.yaml"
    run = replace(workload, train=str(train), run_dir=str(folder / "imports"))
    config.write_text(dump(run.config(max_steps=1)), encoding="utf-8")
    words = [sys.executable, "-X", "importtime", "-m", "torchrec_mtl", "train", str(config)]
    done = subprocess.run(
        words, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True
    )
    seconds = import_seconds(done.stderr)
    total = sum(seconds.values())
    figures = [Figure("all imports", Spread.of([total]), "s")]
    for package in sorted(seconds, key=lambda name: -seconds[name])[:largest]:
        share = Spread.of([seconds[package] / total])
        figures.append(Figure(package, Spread.of([seconds[package]]), "s", share, "all imports"))
    return figures


def import_seconds(log: str) -> dict[str, float]:
    r"""Add up what ``-X importtime`` wrote, by top-level package, each module without those that it imports.

    Example:
        >>> import_seconds("import time:  500000 |  900000 |   torch.nn\nimport time: 250000 | 250000 | torch")
        {'torch': 0.75}
    """
    found: dict[str, float] = {}
    for line in log.splitlines():
        if match := re.match(r"import time: +(\d+) \| +\d+ \| +([\w.]+)", line):
            package = match[2].partition(".")[0]
            found[package] = found.get(package, 0.0) + int(match[1]) / 1e6
    return found


def _write(workload: Workload, folder: Path) -> Path:
    path = folder / "start.parquet"
    pq.write_table(workload.table(_ROWS), path)
    return path


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}
