r"""What NCS4CVR's masks cost, and what they share.

    python -m benchmarks.ncs4cvr speed [--tasks 2 4 8] [--batch 1024] [--repeats 7]
    python -m benchmarks.ncs4cvr masks [--seeds 0 1 2 3 4] [key=value ...]

``speed``: forward, backward, and Adam of K masked networks of the paper's size (720 -> 512 -> 256 -> 128), as a ratio
to K dense towers of that size, interleaved, one thread.

``masks``: trains examples/kuairand/ncs4cvr.yaml once a seed, both tasks to the last round, and prints by layer how far
the tasks' connections overlap (Jaccard), against random masks of the same densities, and how far each task's are those
with the largest *initial* weights, which the tasks have in common since all rounds rewind to one start.

Whether the masks help is another question: torchrec-mtl bench benchmarks/ncs4cvr.yaml
"""

from __future__ import annotations

import argparse
import io
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.measured import Aim, Figure, Spread, as_markdown, interleave, ratios
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.load import load_config
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.heads.base import Head
from torchrec_mtl.heads.ncs4cvr import NCS4CVR
from torchrec_mtl.heads.single_task import SingleTask
from torchrec_mtl.model import build_model
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train
from torchrec_mtl.training.session import open_session

CONFIG = "examples/kuairand/ncs4cvr.yaml"
INPUTS, WIDTHS = 720, (512, 256, 128)

# Shapes: K tasks, N connections.


def speed(tasks: Sequence[int], batch: int, repeats: int) -> list[Figure]:
    """Return the step times of masked networks beside those of dense towers."""
    sides: dict[str, Callable[[], float]] = {}
    for count in tasks:
        names = [f"t{k}" for k in range(count)]
        sides[f"{count} masked networks"] = stepper(masked(names), batch)
        sides[f"{count} dense towers"] = stepper(SingleTask(INPUTS, names, SingleTask.Config(tower=WIDTHS)), batch)
    found = interleave(sides, repeats)
    figures = []
    for count in tasks:
        mine, theirs = (found[f"{count} {what}"] for what in ("masked networks", "dense towers"))
        each = fmean(mine) / count
        figures.append(
            Figure(
                f"{count} masked networks",
                Spread.of(mine),
                "ms a step",
                ratios(mine, theirs),
                "dense towers",
                Aim("at most", 1.15),
                f"{each:.1f} ms a task",
            )
        )
    return figures


def masked(names: Sequence[str]) -> NCS4CVR:
    """Return a head whose tasks have random masks of a fifth of the connections."""
    head = NCS4CVR(INPUTS, names, NCS4CVR.Config(shared=WIDTHS))
    for k in range(len(names)):
        head.rounds.begin([k], 1, torch.rand(head.layers.num_connections) < 0.2)
    return head


def stepper(head: Head, batch: int) -> Callable[[], float]:
    """Return a function that trains a step and returns its milliseconds."""
    optimizer = torch.optim.Adam(head.parameters(), fused=True)
    x, y = torch.randn(batch, INPUTS), torch.randint(0, 2, (batch,)).float()

    def step() -> float:
        start = time.perf_counter()
        out = head(Representation(x.detach().requires_grad_()))
        losses = [torch.nn.functional.binary_cross_entropy_with_logits(z, y) for z in out.logits.values()]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        return (time.perf_counter() - start) * 1000

    return step


@dataclass(frozen=True)
class Overlap:
    """One layer of one seed.

    Attributes:
        densities: of the tasks.
        learned: Jaccard index of the tasks' masks, mean over pairs.
        random: that of random masks of these densities.
        initial: Jaccard index of a task's mask and its layer's largest initial weights, mean over tasks.
    """

    densities: tuple[float, ...]
    learned: float
    random: float
    initial: float


def overlaps(config: RunConfig) -> list[Overlap]:
    """Train a run, and compare its masks, a layer each."""
    with process_group("cpu") as device:
        train(config, device, fresh=True, console=Console(file=io.StringIO()))
        session = open_session(config, Statistics.load(Path(config.run_dir) / "statistics.json"), device)
        session.restore(Checkpoints(config.run_dir), "latest", weights_only=True)
        start = build_model(config, session.scales).objective.head
    head = session.objective.head
    assert isinstance(head, NCS4CVR), "the config names another head"
    assert isinstance(start, NCS4CVR), "as above"
    masks = torch.split(head.rounds.current(), head.layers.sizes, dim=1)
    initial = torch.split(start.layers.connections().abs(), head.layers.sizes)
    return [compare(m, w) for m, w in zip(masks, initial, strict=True)]


def compare(masks: Tensor, initial: Tensor) -> Overlap:
    """Compare masks [K, N] of one layer with each other and with its initial weights [N]."""
    densities = masks.double().mean(1).tolist()
    pairs = list(combinations(range(len(masks)), 2))
    largest = []
    for mask in masks:
        top = torch.zeros_like(mask)
        top[initial.topk(int(mask.sum())).indices] = True
        largest.append(jaccard(mask, top))
    both = [densities[i] * densities[j] for i, j in pairs]
    return Overlap(
        tuple(densities),
        fmean(jaccard(masks[i], masks[j]) for i, j in pairs),
        fmean(b / (densities[i] + densities[j] - b) for (i, j), b in zip(pairs, both, strict=True)),
        fmean(largest),
    )


def jaccard(a: Tensor, b: Tensor) -> float:
    """Return |a and b| / |a or b|; 0 where both are empty."""
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


def show_overlaps(runs: Sequence[Sequence[Overlap]], names: Sequence[str], tasks: Sequence[str]) -> str:
    """Return the table: mean, smallest, and largest over seeds."""
    of_tasks = ", ".join(tasks)
    columns = ("layer", f"density of {of_tasks}", "Jaccard of the tasks", "at random", "with the largest initial")
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- | --- | --- |"]
    for name, layer in zip(names, zip(*runs, strict=True), strict=True):
        densities = ", ".join(f"{fmean(d):.3f}" for d in zip(*(o.densities for o in layer), strict=True))
        cells = [spread([getattr(o, what) for o in layer]) for what in ("learned", "random", "initial")]
        lines.append(f"| {name} | {densities} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return mean and range."""
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Print one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    fast = parts.add_parser("speed")
    fast.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    fast.add_argument("--batch", type=int, default=1024)
    fast.add_argument("--repeats", type=int, default=7)
    shared = parts.add_parser("masks")
    shared.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    shared.add_argument("overrides", nargs="*", help="settings of the config, as key.path=value")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, one thread; torch {version('torch')}, torchrec {version('torchrec')}"
    if options.part == "speed":
        torch.manual_seed(0)
        with process_group("cpu"):  # sets the allocator, as in a run
            figures = speed(options.tasks, options.batch, options.repeats)
        title = (
            f"{INPUTS} -> {' -> '.join(map(str, WIDTHS))}, batch {options.batch}, {options.repeats} repeats, {machine}"
        )
        print(as_markdown(title, figures))
        return
    runs = []
    for seed in options.seeds:
        words = ["head.choose=last", *options.overrides, f"train.seed={seed}", f"run_dir=runs/ncs4cvr-masks/{seed}"]
        config = load_config(CONFIG, words)
        runs.append(overlaps(config))
        print(f"seed {seed}: {[round(o.learned, 3) for o in runs[-1]]}", flush=True)
    names = [f"layer {i}" for i in range(1, len(runs[0]) + 1)]
    print(f"\n{CONFIG} {' '.join(options.overrides)}, seeds {options.seeds}, {machine}\n")
    print(show_overlaps(runs, names, config.task_names))


if __name__ == "__main__":
    main()
