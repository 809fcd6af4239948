r"""Does the label embedding help? Does the gradient rule? Does it still, once the likelihood is right?

    python benchmarks/hybrid_targets.py cdnow kuairand online_retail [--rows mse ziln] [--seeds 0 1 2 3 4] [--runs runs]

Rows are models: heads, ablations of HTLNet, and every continuous loss under HTLNet, with and without its rule. Each row
tries the same three learning rates (the example's, half, and twice that) once, with a seed of its own, is scored on the
validation rows (mean of the binary tasks' AUC and the core's Gini), and trains five seeds at its best one; these alone
read the test rows. Results are appended to `RUNS/hybrid-DATA.jsonl` as they come and not repeated: interrupt at will.
Printed: mean and 95 % interval (Student's t over seeds) of AUC, NRMSE, NMAE, Spearman, Gini, calibration of the core,
then the questions as paired differences by seed, then what the rule saw in the gradients.
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
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.stats import t as student

from torchrec_mtl.config.load import dump, load_config
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train

TUNING_SEED, FACTORS = 1000, (1.0, 0.5, 2.0)
NO_RULE, CORE, RAW = "gradient.type=sum", "tasks.2.loss.type=", "tasks.2.loss.standardize=false"
RULE: dict[str, str] = {
    "": "",
    "rows": "gradient.exact=rows",
    "strong": "gradient.exact=rows gradient.alpha=1 gradient.gamma=0.7",
}
LOSSES = {
    "mse": "",
    "tweedie": "tweedie",
    "ziln": "zero_inflated_lognormal",
    "ordinal": "ordinal",
    "poisson": "poisson",
    "mae": "mae tasks.2.loss.minimum=0",
    "huber": "huber tasks.2.loss.minimum=0",
    "quantile": "quantile tasks.2.loss.q=0.7 tasks.2.loss.minimum=0",
    "log1p": "mse tasks.2.loss.transform=log1p tasks.2.loss.minimum=0",
}
GATED = {"gate gamma": "gamma", "gate lognormal": "lognormal", "gate mse": "mse tasks.2.loss.minimum=0"}
QUESTIONS = [
    ("label embedding, mse", "htlnet mse", "htlnet mse, no label embedding"),
    ("label embedding, tweedie", "htlnet tweedie", "htlnet tweedie, no label embedding"),
    ("all transfer, mse", "htlnet mse", "htlnet mse, no transfer"),
    ("learning tables against frozen ones, mse", "htlnet mse", "htlnet mse, frozen tables"),
    ("rule, mse", "htlnet mse, rule", "htlnet mse"),
    ("rule with exact rows, mse", "htlnet mse, rule rows", "htlnet mse"),
    ("strong rule (alpha 1, gamma 0.7, rows), mse", "htlnet mse, rule strong", "htlnet mse"),
    ("rule, mse of raw labels", "htlnet raw mse, rule", "htlnet raw mse"),
    ("strong rule, mse of raw labels", "htlnet raw mse, rule strong", "htlnet raw mse"),
    ("standardised against raw labels, mse", "htlnet mse", "htlnet raw mse"),
    ("rule, tweedie", "htlnet tweedie, rule", "htlnet tweedie"),
    ("rule, ziln", "htlnet ziln, rule", "htlnet ziln"),
    ("rule, ordinal", "htlnet ordinal, rule", "htlnet ordinal"),
    ("tweedie against mse", "htlnet tweedie", "htlnet mse"),
    ("ziln against mse", "htlnet ziln", "htlnet mse"),
    ("htlnet against shared bottom, mse", "htlnet mse", "shared_bottom mse"),
    ("htlnet against shared bottom, tweedie", "htlnet tweedie", "shared_bottom tweedie"),
]
HEADS = {
    "shared_bottom": "head.type=shared_bottom head.shared=[128] head.tower=[64,32]",
    "single_task": "head.type=single_task head.tower=[128,64,32]",
}
DATA = {"cdnow": "", "kuairand": "head.norm=layer", "online_retail": ""}
Result = dict[str, Any]


def rows(data: str) -> dict[str, str]:
    """Return name -> overrides, the most telling rows first."""
    gated = {} if data == "kuairand" else GATED  # most of its play time is without a click: there is no gate
    found: dict[str, str] = {}
    for loss in ("mse", "tweedie", "ziln", "ordinal"):
        found[f"htlnet {loss}"] = f"{_loss(loss)} {NO_RULE}"
        found[f"htlnet {loss}, rule"] = _loss(loss)
    found["shared_bottom mse"] = f"{HEADS['shared_bottom']} {DATA[data]} {NO_RULE}"
    found["shared_bottom tweedie"] = f"{HEADS['shared_bottom']} {DATA[data]} {_loss('tweedie')} {NO_RULE}"
    for loss in ("mse", "tweedie"):
        found[f"htlnet {loss}, no label embedding"] = f"{_loss(loss)} head.leu=false {NO_RULE}"
    found["htlnet mse, no transfer"] = f"head.leu=false head.ifu_rep=false {NO_RULE}"
    found |= {f"htlnet mse, rule {name}": options for name, options in RULE.items() if name}
    # A core that does overwhelm the others: its label is not standardised.
    found["htlnet raw mse"] = f"{RAW} {NO_RULE}"
    found["htlnet raw mse, rule"] = RAW
    found["htlnet raw mse, rule strong"] = f"{RAW} {RULE['strong']}"
    # What is at stake for a rule that acts on the tables' gradients: what the tables' learning is worth.
    found["htlnet mse, frozen tables"] = f"{NO_RULE} optim.sparse.lr=1e-12"
    found["single_task mse"] = f"{HEADS['single_task']} {DATA[data]} {NO_RULE}"
    found |= {f"htlnet {name}": f"tasks.2.gate={{gate}} {CORE}{options} {NO_RULE}" for name, options in gated.items()}
    found |= {f"htlnet {loss}": f"{_loss(loss)} {NO_RULE}" for loss in LOSSES if f"htlnet {loss}" not in found}
    return found


def _loss(name: str) -> str:
    return f"{CORE}{LOSSES[name]}" if LOSSES[name] else ""


def overrides(config: str, text: str, factor: float) -> list[str]:
    """Return the words of a row, with learning rates."""
    run = load_config(config)
    words = text.format(gate=run.tasks[0].name).split()
    lr = {"optim.sparse.lr": run.optim.sparse.lr * factor, "optim.dense.lr": run.optim.dense.lr * factor}
    own = {word.partition("=")[0] for word in words}
    return [*words, *(f"{key}={value:g}" for key, value in lr.items() if key not in own)]


def run_one(config: str, words: Sequence[str], seed: int, *, on: str) -> Result:
    """Train with one seed; return the metrics on the validation or the test rows, and means of what was logged."""
    with tempfile.TemporaryDirectory() as folder:
        plain = load_config(config)
        files = {"validation": plain.data.eval, "test": plain.data.test}[on]
        assert files is not None, "the config needs data.eval and data.test"
        extra = [
            f"train.seed={seed}",
            f"run_dir={folder}/run",
            "train.references=false",
            f"data.test=[{','.join(files)}]",
        ]
        run = load_config(config, [*words, *extra])
        start = time.monotonic()
        with process_group(run.train.device) as device:
            result = train(run, device, console=Console(file=io.StringIO()))
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result.evaluation is not None
    logged: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith("train/gradient/"):
                logged.setdefault(name.removeprefix("train/gradient/"), []).append(value)
    gradients = {name: float(np.mean(values)) for name, values in logged.items()}
    seconds = round(time.monotonic() - start, 1)
    return {"tasks": result.evaluation.tasks, "gradients": gradients, "seconds": seconds, "step": result.step}


def score(run: RunConfig, tasks: Mapping[str, Mapping[str, float]]) -> float:
    """Return what tuning maximises: the mean of the binary tasks' AUC and the core's Gini."""
    return float(np.mean([tasks[t.name]["auc" if t.kind == "binary" else "gini"] for t in run.tasks]))


class Log:
    """Results by (row, factor, seed), appended to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.results = [json.loads(line) for line in lines]

    def get(self, config: str, words: Sequence[str], seed: int, on: str) -> Result:
        """Return a result, made now if it is not there."""
        # The whole config, so that an edited YAML is not answered with old results.
        whole = hashlib.blake2b(dump(load_config(config, words)).encode(), digest_size=8).hexdigest()
        key = {"words": list(words), "seed": seed, "on": on, "config": whole}
        for result in self.results:
            if {k: result.get(k) for k in key} == key:
                return result
        result = {**key, **run_one(config, words, seed, on=on)}
        self.results.append(result)
        with self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        return result


def measure(data: str, options: argparse.Namespace) -> dict[str, list[Result]]:
    """Tune and run every row."""
    config = f"examples/{data}/htlnet.yaml"
    log, run = Log(options.runs / f"hybrid-{data}.jsonl"), load_config(config)
    found: dict[str, list[Result]] = {}
    for name, text in rows(data).items():
        if options.rows and not any(word in name for word in options.rows):
            continue
        tried = {
            factor: score(run, log.get(config, overrides(config, text, factor), TUNING_SEED, "validation")["tasks"])
            for factor in FACTORS
        }
        best = max(tried, key=lambda factor: -np.inf if np.isnan(tried[factor]) else tried[factor])
        words = overrides(config, text, best)
        found[name] = [log.get(config, words, seed, "test") for seed in options.seeds]
        print(f"{data}: {name}: learning rates x {best:g}", flush=True)
    return found


def show(data: str, found: Mapping[str, Sequence[Result]]) -> None:
    """Print the tables."""
    tasks = load_config(f"examples/{data}/htlnet.yaml").tasks
    core = tasks[-1].name
    columns = [(t.name, "auc") for t in tasks[:-1]]
    columns += [(core, m) for m in ("nrmse", "nmae", "spearman", "gini", "calibration")]
    print(f"\n### {data}\n\n| model | " + " | ".join(f"{t} {m}" for t, m in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, results in found.items():
        cells = [_cell([r["tasks"][t][m] for r in results]) for t, m in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    columns = [c for c in columns if c[1] != "calibration"]
    print("\n| question (first minus second) | " + " | ".join(f"{t} {m}" for t, m in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for question, one, other in QUESTIONS:
        if one in found and other in found:
            pairs = list(zip(found[one], found[other], strict=True))
            cells = [_cell([a["tasks"][t][m] - b["tasks"][t][m] for a, b in pairs], sign="+") for t, m in columns]
            print(f"| {question} | " + " | ".join(cells) + " |")
    _show_gradients(found)


def _show_gradients(found: Mapping[str, Sequence[Result]]) -> None:
    seen = {name: results for name, results in found.items() if results[0]["gradients"]}
    if not seen:
        return
    columns = list(dict.fromkeys(key for results in seen.values() for key in results[0]["gradients"]))
    print("\n| gradients at the boundary, mean over training | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, results in seen.items():
        cells = [f"{np.mean([r['gradients'].get(c, np.nan) for r in results]):.3f}" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _cell(values: list[float], sign: str = "") -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:{sign}.4f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:{sign}.4f} ± {half:.4f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="+", choices=list(DATA))
    parser.add_argument("--rows", nargs="+", help="rows whose name holds one of these words")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec"))
    print(f"seeds {options.seeds}; Python {platform.python_version()}, {versions}")
    print(f"{platform.platform()}, {os.cpu_count()} cores, one thread")
    measured = {data: measure(data, options) for data in options.data}
    for data, found in measured.items():
        show(data, found)


if __name__ == "__main__":
    main()
