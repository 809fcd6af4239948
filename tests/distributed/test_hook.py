"""The gradient hook in a plain TorchRec loop: `DistributedModelParallel`, a train pipeline, fused tables; no config."""

import dataclasses
import warnings
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import KernelConfig, ParameterConstraints, TopologyFactory, TrainerConfig
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ModuleSharder
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.streamable import Pipelineable

from torchrec_mtl import GradientHook, HTLNetRule
from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.testing import run_ranks

FEATURES, BATCH, STEPS, LR = ("user", "video", "liked"), 32, 6, 0.1
TASKS = ("click", "watch")


@dataclasses.dataclass
class Batch(Pipelineable):
    sparse: KeyedJaggedTensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return Batch(self.sparse.to(device), self.labels.to(device))

    def record_stream(self, stream: Any) -> None:
        pass


def tables() -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(name="user", embedding_dim=8, num_embeddings=10, feature_names=["user"]),
        EmbeddingBagConfig(
            name="video",
            embedding_dim=16,
            num_embeddings=12,
            feature_names=["video", "liked"],
            pooling=PoolingType.MEAN,
        ),
    ]


class Over(nn.Module):
    """A user's own dense part; the hook is three lines of it."""

    def __init__(self, exact: str) -> None:
        super().__init__()
        self.click, self.watch = nn.Linear(40, 1), nn.Linear(40, 1)
        self.hook = GradientHook(HTLNetRule.Config(core="watch", gamma=0.5, exact=exact), TASKS, tables=tables())

    def forward(self, pooled: KeyedTensor, batch: Batch) -> tuple[Tensor, Tensor]:
        x = torch.cat([pooled[feature] for feature in FEATURES], dim=1)
        click, watch = self.click(x).squeeze(1), self.watch(x).squeeze(1)
        losses = torch.stack(
            [binary_cross_entropy_with_logits(click, batch.labels[:, 0]), mse_loss(watch, batch.labels[:, 1])]
        )
        losses = self.hook(losses, pooled, batch.sparse)
        return losses.sum(), torch.stack([click, watch], dim=1).detach()


class Model(nn.Module):
    def __init__(self, exact: str, device: str) -> None:
        super().__init__()
        self.ebc = EmbeddingBagCollection(tables=tables(), device=torch.device(device))
        torch.manual_seed(0)
        self.over = Over(exact)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss_and_scores: tuple[Tensor, Tensor] = self.over(self.ebc(batch.sparse), batch)
        return loss_and_scores


def batches(part: int, parts: int) -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        lengths = torch.randint(0, 4, (len(FEATURES), BATCH), generator=g)
        ids = [[torch.randint(10, (int(n),), generator=g) for n in row] for row in lengths]
        labels = torch.stack([torch.randint(2, (BATCH,), generator=g).float(), torch.randn(BATCH, generator=g)], dim=1)
        rows = range(part * BATCH // parts, (part + 1) * BATCH // parts)
        values = torch.cat([row[i] for row in ids for i in rows])
        sizes = torch.cat([row[rows.start : rows.stop] for row in lengths]).int()
        found.append(Batch(KeyedJaggedTensor(list(FEATURES), values, lengths=sizes), labels[rows.start : rows.stop]))
    return found


def fill(state: dict[str, Any]) -> None:
    """The same tables, sharded or not."""
    for key, value in state.items():
        if "embedding_bags" in key:
            g = torch.Generator().manual_seed(5)
            for tensor in [s.tensor for s in value.local_shards()] if hasattr(value, "local_shards") else [value]:
                tensor.detach().copy_(torch.randn(tensor.shape, generator=g))


def in_rank(exact: str) -> dict[str, Tensor]:
    model = Model(exact, "meta")
    apply_optimizer_in_backward(torch.optim.SGD, model.ebc.parameters(), {"lr": LR})
    sharders = cast("list[ModuleSharder[nn.Module]]", [EmbeddingBagCollectionSharder()])
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            trainer_config=TrainerConfig(world_size=world_size(), local_world_size=world_size()),
            kernel_config=KernelConfig(compute_device="cpu"),
        ),
        constraints={t.name: ParameterConstraints(sharding_types=["table_wise"]) for t in tables()},
        storage_reservation=FixedPercentageStorageReservation(0.1),
        batch_size=BATCH // world_size(),
    )
    plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        dmp = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=sharders)
    fill(dmp.state_dict())
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(dmp.named_parameters())), lambda p: torch.optim.SGD(p, lr=LR)
    )
    both = CombinedOptimizer([dmp.fused_optimizer, dense])
    pipeline = TrainPipelineSparseDist(dmp, both, torch.device("cpu"))
    data = iter(batches(rank(), world_size()))
    for _ in range(STEPS):
        pipeline.progress(data)
    hook = model.over.hook
    assert int(hook.steps) == STEPS
    return {
        "click": model.over.click.weight.detach(),
        "gramians": torch.stack([g for g, _ in hook.boundary.history]),
        "weights": torch.stack([w for _, w in hook.boundary.history]),
    }


def by_hand() -> dict[str, Tensor]:
    """Algorithm 1 on ordinary tables: the whole gradient of each task, projected, scaled, summed."""
    model = Model("boundary", "cpu").eval()  # the hook is off
    fill(model.state_dict())
    parameters, gramians = list(model.ebc.parameters()), []
    for batch in batches(0, 1):
        pooled = model.ebc(batch.sparse)
        x = torch.cat([pooled[f] for f in FEATURES], dim=1)
        losses = [
            binary_cross_entropy_with_logits(model.over.click(x).squeeze(1), batch.labels[:, 0]),
            mse_loss(model.over.watch(x).squeeze(1), batch.labels[:, 1]),
        ]
        click, core = (
            torch.cat([g.flatten() for g in torch.autograd.grad(z, parameters, retain_graph=True)]) for z in losses
        )
        gramians.append(torch.stack([click, core]) @ torch.stack([click, core]).T)
        adjusted = click - 0.5 * (click @ core).clamp(max=0) / (core @ core) * core
        adjusted = 0.5 * (core.norm() / adjusted.norm()).clamp(0.1, 10) * adjusted + 0.5 * adjusted
        over = [*model.over.click.parameters(), *model.over.watch.parameters()]
        above = torch.autograd.grad(sum(losses), over)
        with torch.no_grad():
            for p, g in zip(parameters, (core + adjusted).split([p.numel() for p in parameters])):
                p -= LR * g.view_as(p)
            for p, g in zip(over, above):
                p -= LR * g
    return {"click": model.over.click.weight.detach(), "gramians": torch.stack(gramians).unsqueeze(1)}


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_three_lines_in_a_plain_torchrec_loop(world: int) -> None:
    expected = by_hand()
    ranks = run_ranks(in_rank, world, "rows")
    for found in ranks:
        torch.testing.assert_close(found["gramians"], expected["gramians"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["click"], expected["click"], rtol=1e-4, atol=1e-6)
        assert torch.equal(found["weights"], ranks[0]["weights"])
    assert (expected["gramians"][:, 0, 0, 1] < 0).any()  # the projection had something to do


def test_hook_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="embedding_bag_configs"):
        GradientHook(HTLNetRule.Config(core="watch", exact="rows"), TASKS)
    with pytest.raises(ValueError, match="use exact: rows"):
        GradientHook(HTLNetRule.Config(core="watch", exact="dense"), TASKS, tables=tables())
    hook = GradientHook(HTLNetRule.Config(core="watch", exact="rows"), TASKS, tables=tables())
    pooled = EmbeddingBagCollection(tables=tables())(batches(0, 1)[0].sparse)
    losses = torch.stack([pooled.values().sum(), pooled.values().square().sum()])
    with pytest.raises(ValueError, match="KeyedJaggedTensor"):
        hook(losses, pooled)
    with pytest.raises(ValueError, match="KeyedTensor itself"):
        hook(losses, pooled.values(), batches(0, 1)[0].sparse)


def test_hook_is_off_in_evaluation() -> None:
    hook = GradientHook(HTLNetRule.Config(core="watch"), TASKS).eval()
    losses = torch.ones(2)
    assert hook(losses, torch.zeros(3)) is losses
