"""Samples/s of the whole job, Parquet to metrics, beside a hand-written TorchRec loop on batches held in memory.

    python benchmarks/throughput.py examples/cdnow/htlnet.yaml [key=value ...] [--repeats 5]
    python benchmarks/throughput.py generated [key=value ...]   # an MMoE on 300,000 rows, batch 2048

The hand-written loop has the same tables, the same head, and the plain sum of the losses, in
`DistributedModelParallel` with the same fused optimizer; it is given its batches for nothing and ends an epoch with
predictions of the evaluation batches and AUCs. The job reads, shuffles, and encodes Parquet, trains, logs, evaluates
with all metrics, and writes checkpoints; it runs once with the sum and once with the gradient rule of the config. One
thread, interleaved, the median of the ratios; set-up of both is left out. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import torch
import yaml
from rich.console import Console
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torchrec.distributed.train_pipeline import TrainPipelineBase

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are scripts beside the package, not installed

from benchmarks.machine_limits import BANDWIDTH, GEMM, count_flops, limits
from benchmarks.scaling_workload import HEADS
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.load import load_config, parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.oracle import make_oracle_config, make_oracle_table
from torchrec_mtl.data.splits import Files, open_data
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.embeddings import Embeddings, features_spec
from torchrec_mtl.registry import resolve
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.metrics import auc
from torchrec_mtl.training.optim import Optimizers
from torchrec_mtl.training.run import prepare_data
from torchrec_mtl.training.session import open_session
from torchrec_mtl.training.sharding import shard
from torchrec_mtl.training.sinks import JsonLinesSink, MetricSink, ProgressSink, TensorBoardSink
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.trainer import Trainer

ROWS, EVAL_ROWS = 300_000, 20_000  # of generated data
Epoch = Callable[[], int]
"""Trains and evaluates the epochs of the config; returns the rows trained."""


class HandWritten(torch.nn.Module):
    """What a TorchRec user writes: tables, concatenation, a head, the sum of mean losses."""

    def __init__(self, config: RunConfig, scale: dict[str, tuple[float, float]]) -> None:
        super().__init__()
        features = config.features
        self.embeddings = Embeddings(features, "shared", config.task_names)
        dims = {t.name: t.dim for t in features.tables}
        width = sum(dims[f.table] for f in (*features.sparse, *features.sequences)) + len(features.dense)
        head_class = resolve("head", config.head.type)
        assert head_class.tables == "shared", "a head on what is concatenated here"
        binary = [task.name for task in config.tasks if task.kind == "binary"]
        spec = features_spec(features, "shared", config.task_names)
        outputs = dict.fromkeys(config.task_names, 1)
        self.head = head_class.create(width, outputs, config.head, features=spec, binary=binary)
        self.tasks, self.scale = config.tasks, scale

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (loss, predictions [B, K])."""
        pooled, unpooled = self.embeddings(batch)
        parts = [pooled.values()] if pooled is not None else []
        for jagged in (unpooled or {}).values():
            rows = torch.repeat_interleave(torch.arange(len(batch.labels)), jagged.lengths().long())
            total = torch.zeros(len(batch.labels), jagged.values().shape[1]).index_add(0, rows, jagged.values())
            parts.append(total / jagged.lengths().clamp_min(1).unsqueeze(1))
        logits = self.head(Representation(torch.cat([*parts, batch.dense], dim=1))).logits
        loss = torch.zeros(())
        for k, task in enumerate(self.tasks):
            mean, std = self.scale[task.name]
            y, w = batch.labels[:, k], batch.weights[:, k]
            z = logits[task.name]
            if task.kind == "binary":
                values = binary_cross_entropy_with_logits(z, y, reduction="none")
            else:
                values = mse_loss(z, (y - mean) / std, reduction="none")
            loss = loss + (values * w).sum() / w.sum().clamp_min(1)
        return loss.reshape(1), torch.stack([z.detach() for z in logits.values()], dim=1)


def hand_written(config: RunConfig, files: Files, stats: Statistics, device: torch.device) -> Epoch:
    """Return a function that trains and evaluates the epochs of the config."""
    session = open_session(config, stats, device)
    batches = list(session.reader(files.train, train=True).epoch(0))
    held_out = list(session.reader(files.eval, train=False).epoch(0)) if files.eval else []
    scale = {name: (s.mean, s.std) for name, s in stats.labels.items()}
    model = shard(HandWritten(config, scale), config, device)  # type: ignore[arg-type]
    optimizers = Optimizers(model, config.optim.dense, config.optim.sparse.lr)

    def epoch() -> int:
        model.train()
        pipeline, data = TrainPipelineBase(model, optimizers.combined, device), iter(batches)
        for _ in batches:
            pipeline.progress(data)
        model.eval()
        with torch.no_grad():
            predictions = torch.cat([model(b)[1] for b in held_out])
        labels = torch.cat([b.labels for b in held_out])
        valid = torch.cat([b.valid for b in held_out]) > 0
        for k, task in enumerate(config.tasks):
            if task.kind == "binary":
                auc(labels[valid, k].numpy(), predictions[valid, k].numpy())
        return sum(int(b.valid.sum()) for b in batches)

    return lambda: sum(epoch() for _ in range(config.train.epochs))


def whole_job(config: RunConfig, files: Files, stats: Statistics, device: torch.device, parent: Path) -> Epoch:
    """Return a function that runs the trainer to its end, metrics and checkpoints included."""
    session = open_session(config, stats, device)
    parent.mkdir(parents=True)

    def epoch() -> int:
        folder = Path(tempfile.mkdtemp(dir=parent))  # each job starts from nothing
        sinks: list[MetricSink] = [JsonLinesSink(folder / "metrics.jsonl"), TensorBoardSink(folder / "tb", 0)]
        trainer = Trainer(
            session,
            TrainState(),
            train_files=files.train,
            eval_files=files.eval,
            checkpoints=Checkpoints(folder),
            sinks=sinks,
        )
        sinks.append(ProgressSink(Console(file=io.StringIO()), trainer.total_steps, 0))
        trainer.fit()
        for sink in sinks:
            sink.close()
        return trainer.reader.num_rows * config.train.epochs

    return epoch


def generate(folder: Path) -> Path:
    """Write generated rows and the config of an MMoE on them; return the config's path."""
    paths = {name: folder / f"{name}.parquet" for name in ("train", "eval")}
    for seed, (path, rows) in enumerate(zip(paths.values(), (ROWS, EVAL_ROWS), strict=True)):
        pq.write_table(make_oracle_table(rows, seed=seed, rows_per_field=9_600), path, row_group_size=16_384)
    raw = make_oracle_config(
        str(paths["train"]), run_dir=str(folder / "run"), rows_per_field=9_600, dim=16, batch_size=2048
    )
    raw["data"]["eval"] = str(paths["eval"])
    raw["head"] = HEADS["mmoe"]
    raw["train"] = {"epochs": 1}
    config = folder / "mmoe.yaml"
    config.write_text(yaml.safe_dump(raw))
    return config


def _sides(
    config: RunConfig, files: Files, stats: Statistics, device: torch.device, folder: Path
) -> dict[str, Callable[[], Epoch]]:
    plain = parse({**config.model_dump(mode="json"), "gradient": {"type": "sum"}})
    return {
        "hand-written": lambda: hand_written(plain, files, stats, device),
        "job, sum": lambda: whole_job(plain, files, stats, device, folder / "sum"),
        f"job, {config.gradient.type}": lambda: whole_job(config, files, stats, device, folder / "rule"),
    }


def _measure(sides: dict[str, Callable[[], Epoch]], repeats: int) -> dict[str, float]:
    """Print rates and ratios; return the median rate of each side."""
    run = {name: make() for name, make in sides.items()}
    speed: dict[str, list[float]] = {name: [] for name in run}
    for repeat in range(repeats + 1):
        for name, epoch in run.items():
            start = time.perf_counter()
            rows = epoch()
            if repeat:  # the first warms up
                speed[name].append(rows / (time.perf_counter() - start))
    base = speed["hand-written"]
    for name, values in speed.items():
        ratios = [v / b for v, b in zip(values, base, strict=True)]
        print(
            f"{name:<14} {statistics.median(values):>9.0f} samples/s   ratio {statistics.median(ratios):.2f}"
            f"  ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    return {name: statistics.median(values) for name, values in speed.items()}


def print_limits(config: RunConfig, files: Files, stats: Statistics, device: torch.device, rows_per_s: float) -> None:
    """Print what one thread reaches, and which share of its matrix products' peak the job does."""
    session = open_session(config, stats, device)
    batch = next(iter(session.reader(files.train, train=True).epoch(0)))
    flops = count_flops(session, batch) / config.data.batch_size
    peaks = {name: statistics.median(side() for _ in range(3)) for name, side in limits().items()}
    share = flops * rows_per_s / (1e9 * peaks[GEMM])
    print(f"GEMM peak {peaks[GEMM]:.0f} GFLOP/s, bandwidth {peaks[BANDWIDTH]:.1f} GB/s", end="; ")
    print(f"{flops / 1e6:.2f} MFLOP a row: the job reaches {share:.0%} of the GEMM peak", flush=True)


def main() -> None:
    """Run the benchmark, or one side of it for its memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", help="YAML of a run, or: generated")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="run one side once and print its peak memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, process_group("cpu") as device:
        path = generate(Path(folder)) if options.config == "generated" else options.config
        config = load_config(path, options.overrides)
        prepare_data(config, Console())
        files = open_data(config)
        stats = collect(files.train, config.data, config.features, config.tasks)
        sides = _sides(config, files, stats, device, Path(folder))
        if options.only:
            sides[options.only]()()
            print(f"{options.only:<14} peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
            return
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec", "pyarrow"))
        print(f"{options.config}, seed {config.train.seed}; Python {platform.python_version()}, {versions}")
        print(f"{platform.platform()}, {os.cpu_count()} cores, one thread")
        speed = _measure(sides, options.repeats)
        print_limits(config, files, stats, device, speed[f"job, {config.gradient.type}"])
    for name in sides:
        subprocess.run([sys.executable, *sys.argv, "--only", name], check=True)


if __name__ == "__main__":
    main()
