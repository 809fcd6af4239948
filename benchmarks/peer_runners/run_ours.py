"""The job in torchrec_mtl, as ``torchrec-mtl train CONFIG.yaml`` does it: all of it, only timed.

Reader, shuffling, statistics and checks of the data, windowed metrics, progress, log, TensorBoard, checkpoint, and
exact metrics of the restored checkpoint are included. Batches are read while training goes on, so reading is the look
at the data before the first step.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console

from benchmarks.machine_limits import count_flops
from benchmarks.peer_runners.measure import Array, Clock, main
from benchmarks.peer_runners.spec import Spec
from torchrec_mtl import doctor
from torchrec_mtl.config.load import load_config
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.training import run as training
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.inference import predict_run
from torchrec_mtl.training.run_dir import load_run
from torchrec_mtl.training.session import Session, open_session
from torchrec_mtl.training.trainer import Trainer

TIMED = (
    (training, "collect", "read"),
    (Trainer, "fit", "train"),
    (Session, "restore", "evaluate"),
    (Session, "evaluate", "evaluate"),
)


class Ours:
    """See `benchmarks.peer_runners.measure.Contender`."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.run_dir = spec, str(Path(spec.folder) / "run")
        self.notes = [
            f"tables: fused row-wise Adagrad, learning rate {spec.table_lr}",
            "reading is the statistics pass over both files; batches are read in a thread while training goes on",
            "training includes windowed metrics, log, TensorBoard, and a checkpoint; evaluation all metrics of a task",
        ]

    def run(self, clock: Clock) -> Mapping[str, float]:
        """See `Contender.run`."""
        for owner, name, phase in TIMED:
            setattr(owner, name, clock.timed(phase, getattr(owner, name)))
        with clock.phase("build"):
            doctor.require_healthy()
            path = Path(self.spec.folder) / "config.yaml"
            path.write_text(yaml.safe_dump(config(self.spec, self.run_dir)))
            run = load_config(path)
            with process_group(run.train.device, run.train.timeout_s) as device:
                result = training.train(run, device, console=Console(file=io.StringIO()))
        assert result.evaluation is not None
        return {task: metrics["auc"] for task, metrics in result.evaluation.tasks.items()}

    def predict(self) -> Array:
        """See `Contender.predict`."""
        out = Path(self.spec.folder) / "predictions.parquet"
        predict_run(self.run_dir, [self.spec.test], out)
        found: Array = pq.read_table(out, columns=list(self.spec.tasks)).to_pandas().to_numpy()
        return found

    def num_parameters(self) -> int:
        """See `Contender.num_parameters`."""
        run, statistics, _ = load_run(self.run_dir)
        with process_group(run.train.device) as device:
            session = open_session(run, statistics, device)
            return sum(p.numel() for p in session.model.parameters())

    def flops_per_row(self) -> float:
        """Return the floating-point operations of a training step's matrix products, for each of its rows."""
        run, statistics, _ = load_run(self.run_dir)
        with process_group(run.train.device) as device:
            session = open_session(run, statistics, device)
            batch = next(iter(session.reader(open_data(run).train, train=True).epoch(0)))
            return count_flops(session, batch) / self.spec.batch_size


def config(spec: Spec, run_dir: str) -> dict[str, Any]:
    """Return the job as a config of ours; rows start uniformly with the standard deviation that the peers' have."""
    init = math.sqrt(3) * spec.init_std
    hidden, tower = list(spec.hidden), list(spec.tower)
    heads: dict[str, dict[str, Any]] = {
        "mmoe": {"experts": spec.experts, "expert": hidden, "tower": tower},
        "ple": {
            "shared_experts": spec.shared_experts,
            "task_experts": spec.task_experts,
            "levels": [hidden],
            "tower": tower,
        },
        "esmm": {"tower": hidden},
        "shared_bottom": {"shared": hidden, "tower": tower},
    }
    return {
        "data": {
            "train": spec.train,
            "test": spec.test,
            "batch_size": spec.batch_size,
            "eval_batch_size": spec.eval_batch_size,
        },
        "features": {
            "tables": [{"name": n, "rows": rows, "dim": spec.dim, "init": init} for n, rows in spec.sparse.items()],
            "sparse": [{"name": name, "table": name} for name in spec.sparse],
            "dense": list(spec.dense),
        },
        "tasks": [{"name": t, "kind": "binary", "label": t, "loss": {"type": "bce"}} for t in spec.tasks],
        "bottom": {"type": "concat"},
        "head": {"type": spec.model, "norm": "batch", **heads[spec.model]},
        "gradient": {"type": "sum"},
        "optim": {
            "sparse": {"type": "rowwise_adagrad", "lr": spec.table_lr},
            "dense": {"type": "adam", "lr": spec.lr},
        },
        "train": {"epochs": spec.epochs, "seed": spec.seed, "device": "cpu"},
        "run_dir": run_dir,
    }


if __name__ == "__main__":
    main(Ours)
