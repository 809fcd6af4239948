r"""Test metrics of several heads on one data set: same data, same budget, several seeds; mean and 95 % interval.

    python benchmarks/quality.py examples/cdnow/htlnet.yaml --seeds 0 1 2 3 4 [--out runs/quality.jsonl] \
        --variant "htlnet" \
        --variant "shared_bottom: head.type=shared_bottom head.shared=[128] head.tower=[64,32] gradient.type=sum"

Another `head.type` starts from that head's defaults: say widths and norm where they are to be alike.
Every run chooses its checkpoint on the evaluation data and is scored once on the test data. Each result is appended
to --out as it comes; one of the same merged config found there is not repeated. The interval is Student's t over
seeds. With --references the constant and the linear model are printed too.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.stats import t as student

from torchrec_mtl.config.load import dump, load_config
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train

_SHOWN = {"binary": ("auc", "logloss"), "regression": ("nrmse", "nmae", "spearman", "gini")}


def run_one(config: str, overrides: list[str], seed: int, references: bool) -> dict[str, Any]:
    """Train and test one variant with one seed."""
    with tempfile.TemporaryDirectory() as folder:
        extra = [f"train.seed={seed}", f"run_dir={folder}/run", f"train.references={str(references).lower()}"]
        run = load_config(config, [*overrides, *extra])
        start = time.monotonic()
        with process_group(run.train.device) as device:
            result = train(run, device, console=Console(file=io.StringIO()))
    assert result.evaluation is not None, "the config needs data.test"
    return {
        "tasks": result.evaluation.tasks,
        "references": dict(result.references),
        "step": result.step,
        "seconds": round(time.monotonic() - start, 1),
    }


def fingerprint(config: str, overrides: list[str]) -> str:
    """Return a hash of the merged config, so that a changed YAML is not answered with old results."""
    return hashlib.blake2b(dump(load_config(config, overrides)).encode(), digest_size=8).hexdigest()


def show(config: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Print one Markdown table."""
    tasks = load_config(config).tasks
    columns = [(t.name, metric) for t in tasks for metric in _SHOWN[t.kind]]
    print("| model | seeds | " + " | ".join(f"{task} {metric}" for task, metric in columns) + " | seconds |")
    print("| --- " * (len(columns) + 3) + "|")
    for name, results in runs.items():
        cells = [_cell([r["tasks"][task][metric] for r in results]) for task, metric in columns]
        seconds = f"{np.median([r['seconds'] for r in results]):.0f}"
        print(f"| {name} | {len(results)} | " + " | ".join(cells) + f" | {seconds} |")
    for name, metrics in next(iter(runs.values()))[0]["references"].items():
        print(f"| {name} | | " + " | ".join(f"{metrics[task][metric]:.4f}" for task, metric in columns) + " | |")


def _cell(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.4f} ± {half:.4f}"


def main() -> None:
    """Run all variants and seeds, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config")
    parser.add_argument("--variant", action="append", required=True, help="NAME or 'NAME: key=value key=value'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="JSON lines of all runs")
    parser.add_argument("--references", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done: list[dict[str, Any]] = []
    if options.out and options.out.exists():
        done = [json.loads(line) for line in options.out.read_text().splitlines()]
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for variant in options.variant:
            name, _, overrides = variant.partition(":")
            key = {"variant": variant, "seed": seed, "config": fingerprint(options.config, overrides.split())}
            result = next((d for d in done if {k: d[k] for k in key} == key), None)
            if result is None:
                first = options.references and not runs.get(name)
                result = {**key, **run_one(options.config, overrides.split(), seed, first)}
                if options.out:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    with options.out.open("a") as file:
                        file.write(json.dumps(result) + "\n")
            runs.setdefault(name, []).append(result)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec"))
    print(f"{options.config}, seeds {options.seeds}, test data; mean and 95 % interval over seeds")
    print(
        f"Python {platform.python_version()}, {versions}; {platform.platform()}, {os.cpu_count()} cores, one thread\n"
    )
    show(options.config, runs)


if __name__ == "__main__":
    main()
