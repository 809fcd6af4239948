"""TorchRec's DLRM on CDNOW with HTLNet in place of its over-arch: buys again -> buys twice -> how much?

    python examples/embed_in_dlrm.py
    torchx run dist.ddp -j 1x2 --script examples/embed_in_dlrm.py -- --epochs 2

It is `dlrm.py` with three tasks: HTLNet passes what it knows of the first two down to the third, and its gradient rule,
registered on that regression, adjusts the other tasks' gradients where they meet at the tables' output. No YAML, and
nothing else of this library. The lines in which the two scripts differ are in docs/embed.md.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import KernelConfig, ParameterConstraints, TopologyFactory, TrainerConfig
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mtl import HTLNet, HTLNetRule, MultiTaskArch

DATA = Path("data/cdnow")
LABELS = ["buys_again", "buys_twice", "spend"]
LOSSES: dict[str, Any] = {"buys_again": "bce", "buys_twice": "bce", "spend": {"type": "mse", "transform": "log1p"}}
SPARSE = {"recency_bucket": 15, "frequency_bucket": 12, "amount_bucket": 17, "gap_ratio_bucket": 12}
DENSE = [
    "log_recency",
    "log_frequency",
    "log_mean_gap",
    "log_recent_count",
    "log_recent_amount",
    "log_amount",
    "log_cds",
]
DIM = 16

# Shapes: N rows of a file, B rows of a rank's batch, F sparse features, D0 dense columns, K labels.


class MultiTaskDLRM(DLRMTrain):
    """DLRM up to its interactions, and the tasks on top."""

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the loss, and the tasks' losses, scores, and labels."""
        dense, pooled = self.model.dense_arch(batch.dense_features), self.model.sparse_arch(batch.sparse_features)
        x = self.model.inter_arch(dense, pooled)
        return self.model.over_arch(x, batch.labels, pooled=pooled)


def make_model(device: torch.device) -> nn.Module:
    """Return the model, its tables not made yet."""
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=DIM, num_embeddings=rows, feature_names=[name])
        for name, rows in SPARSE.items()
    ]
    dlrm = DLRM(
        embedding_bag_collection=EmbeddingBagCollection(tables=tables, device=torch.device("meta")),
        dense_in_features=len(DENSE),
        dense_arch_layer_sizes=[64, DIM],
        over_arch_layer_sizes=[128, 64, 1],
        dense_device=device,
    )
    head = HTLNet(DIM + len(SPARSE) * (len(SPARSE) + 1) // 2, LABELS)
    dlrm.over_arch = MultiTaskArch(head, LOSSES, HTLNetRule.Config(core="spend")).to(device)
    return MultiTaskDLRM(dlrm)


def shard(model: nn.Module, device: torch.device, batch_size: int) -> DistributedModelParallel:
    """Plan, and shard the tables, with an optimizer in their backward."""
    apply_optimizer_in_backward(
        RowWiseAdagrad, [p for p in model.parameters() if p.device.type == "meta"], {"lr": 0.02}
    )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            trainer_config=TrainerConfig(world_size=dist.get_world_size(), local_world_size=local),
            kernel_config=KernelConfig(compute_device=device.type),
        ),
        # Tables this small would be copied to every rank instead.
        constraints={f"t_{name}": ParameterConstraints(sharding_types=["table_wise"]) for name in SPARSE},
        storage_reservation=FixedPercentageStorageReservation(0.1),
        batch_size=batch_size // dist.get_world_size(),
    )
    sharders: Any = [EmbeddingBagCollectionSharder()]
    plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)  # TorchRec's own
        return DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)


def fit(
    model: DistributedModelParallel, device: torch.device, rows: Batch, batch_size: int, epochs: int
) -> list[Tensor]:
    """Train; return the losses of each step."""
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda p: torch.optim.Adam(p, lr=0.002)
    )
    pipeline: Any = TrainPipelineSparseDist(model.train(), CombinedOptimizer([model.fused_optimizer, dense]), device)
    data = (batch for epoch in range(epochs) for batch in batches(rows, batch_size, seed=epoch))
    steps, losses = epochs * (len(rows.labels) // batch_size), []
    for step in range(steps):
        model.module.model.over_arch.head.set_progress(step / steps, step)
        loss, _, _ = pipeline.progress(data)
        losses.append(loss)
        if step % 50 == 0:
            say(f"step {step}/{steps}: loss {' '.join(f'{x:.4f}' for x in loss.flatten().tolist())}")
    pipeline.detach()
    return losses


@torch.no_grad()
def predict(model: nn.Module, device: torch.device, rows: Batch, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return scores and labels of all ranks' rows, those of a last, smaller batch left out."""
    model.eval()
    outputs = [model(batch.to(device))[1] for batch in batches(rows, batch_size)]
    mine = [torch.cat([o[i] for o in outputs]).cpu() for i in (1, 2)]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    scores, labels = (torch.cat([p[i] for p in parts]) for i in (0, 1))
    return scores, labels


def auc(scores: Tensor, positive: Tensor) -> float:
    """Return the chance that a positive row scores above a negative one, from [N] and bool [N]."""
    ranks, n = torch.from_numpy(rankdata(scores.double().numpy())), int(positive.sum())
    return (float(ranks[positive].sum()) - n * (n + 1) / 2) / (n * (len(positive) - n))


def read(folder: Path, split: str) -> Batch:
    """Return all rows of a file: dense [N, D0], ids [N, F] as values of F bags of one id, labels [N, K]."""
    table = pq.read_table(folder / f"{split}.parquet", columns=[*DENSE, *SPARSE, *LABELS])
    columns = {name: torch.tensor(table[name].to_numpy()) for name in table.column_names}
    return Batch(
        dense_features=torch.stack([columns[name].float() for name in DENSE], dim=1),
        sparse_features=bags(torch.stack([columns[name] for name in SPARSE], dim=1)),
        labels=torch.stack([columns[name].float() for name in LABELS], dim=1).squeeze(1),
    )


def bags(ids: Tensor) -> KeyedJaggedTensor:
    """Return ids [B, F] as F features of one id a row."""
    return KeyedJaggedTensor(list(SPARSE), ids.T.flatten(), lengths=torch.ones(ids.numel(), dtype=torch.int32))


def batches(rows: Batch, size: int, seed: int | None = None) -> Iterator[Batch]:
    """Yield this rank's part of each batch of ``size`` rows, in the order of the file or in one drawn from a seed."""
    n, ids = len(rows.labels), rows.sparse_features.values().view(len(SPARSE), -1).T
    order = torch.arange(n) if seed is None else torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for start in range(0, n - size + 1, size):
        mine = order[start + dist.get_rank() : start + size : dist.get_world_size()]
        yield Batch(rows.dense_features[mine], bags(ids[mine]), rows.labels[mine])


def join() -> torch.device:
    """Join the group that torchrun describes, or make one of this process; return this rank's device."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return device


def say(text: str) -> None:
    """Print on rank 0."""
    if dist.get_rank() == 0:
        print(text, flush=True)


def arguments(text: str | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.parquet and test.parquet")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=512, help="rows of all ranks together")
    args = parser.parse_args()
    if not (args.data / "train.parquet").exists():
        parser.error(f"{args.data} has no train.parquet; make it: python examples/cdnow/prepare.py")
    return args


def report(scores: Tensor, labels: Tensor) -> None:
    """Say how well scores [N] or [N, K] rank rows by labels of the same shape."""
    for name, score, label in zip(LABELS, scores.view(len(labels), -1).T, labels.view(len(labels), -1).T):
        say(f"test AUC of {name} above 0: {auc(score, label > 0):.4f}")


def main() -> None:
    """Train, and say how well the scores rank the test rows."""
    args = arguments(__doc__)
    device = join()
    torch.manual_seed(0)
    model = shard(make_model(device), device, args.batch_size)
    torch.manual_seed(dist.get_rank())  # what training draws (dropout, sampled labels) is of a rank's own rows
    fit(model, device, read(args.data, "train"), args.batch_size, args.epochs)
    report(*predict(model, device, read(args.data, "test"), args.batch_size))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
