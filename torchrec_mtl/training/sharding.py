"""The planner's plan, `DistributedModelParallel`, and initial values that do not depend on either."""

from __future__ import annotations

import os
import warnings
from typing import cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    ParameterConstraints,
    Stats,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder

from torchrec_mtl.config.checks import refused_in_runs as refused_in_runs
from torchrec_mtl.config.features import FeaturesConfig, SequenceConfig, SparseConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.embeddings import initialise_tables, table_copies
from torchrec_mtl.model import MultiTaskModel
from torchrec_mtl.registry import resolve
from torchrec_mtl.training.optim import fuse_sparse_optimizer

RESERVED = 0.1
"""Share of a GPU's memory that is kept from tables, for the dense part and what a step needs."""


def sharders() -> list[ModuleSharder[nn.Module]]:
    """Return the sharders of both collections."""
    # Without the mode FBGEMM takes a weight decay and ignores it.
    fused = {"weight_decay_mode": WeightDecayMode.L2}
    both = [
        EmbeddingBagCollectionSharder(fused_params=dict(fused)),
        EmbeddingCollectionSharder(fused_params=dict(fused)),
    ]
    return cast("list[ModuleSharder[nn.Module]]", both)


def shard(model: MultiTaskModel, config: RunConfig, device: torch.device) -> DistributedModelParallel:
    """Plan, shard, and initialise a model built with its tables on ``meta``.

    Args:
        model: from ``build_model``.
        config: the run; tables may constrain their sharding types.
        device: of this rank.

    Raises:
        ValueError: the planner finds no plan, or the tables' optimizer ignores an option.
    """
    if problems := refused_in_runs(config):
        raise ValueError("\n".join(problems))
    fuse_sparse_optimizer(model.embeddings.parameters(), config.optim.sparse, device)
    group = dist.group.WORLD
    assert group is not None, "shard() needs a process group; see torchrec_mtl.training.distributed"
    topology = make_topology(
        dist.get_world_size(),
        _local_world_size(),
        device.type,
        hbm_bytes=_device_memory(device),
        ddr_bytes=_host_memory(),
    )
    planner = make_planner(config, topology)
    plan = planner.collective_plan(model, sharders(), group)
    with warnings.catch_warnings():
        # TorchRec hands DDP an argument that torch has renamed; nothing a user could do about it.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        # Its data parallel wants the same graph at every step: see Objective.activate.
        sharded = DistributedModelParallel(
            model,
            device=device,
            plan=plan,
            sharders=sharders(),
            init_data_parallel=dist.get_world_size() > 1,  # one rank has nobody to share gradients with
        )
    initialise_tables(sharded.state_dict(), config.features, config.train.seed)
    return sharded


def make_topology(
    world_size: int, local_world_size: int, device_type: str, *, hbm_bytes: int | None, ddr_bytes: int
) -> Topology:
    """Return the cluster as TorchRec's planner sees it, with TorchRec's own constants for all but memory.

    Args:
        world_size: ranks.
        local_world_size: ranks of a node.
        device_type: "cpu" or "cuda".
        hbm_bytes: memory of one GPU; None on the CPU.
        ddr_bytes: host memory of one rank.
    """
    return TopologyFactory.create_topology(
        trainer_config=TrainerConfig(
            world_size=world_size,
            local_world_size=local_world_size,
            hbm_cap_bytes=hbm_bytes,
            ddr_cap_bytes=ddr_bytes,
        ),
        kernel_config=KernelConfig(compute_device=device_type),
    )


def make_planner(config: RunConfig, topology: Topology, stats: Stats | None = None) -> EmbeddingShardingPlanner:
    """Return the planner of a run, for training and for ``torchrec-mtl plan`` alike.

    Args:
        config: the run.
        topology: from `make_topology`; its ranks share the global batch.
        stats: what is told the plan and its estimates; by default TorchRec's log.
    """
    return EmbeddingShardingPlanner(
        topology=topology,
        constraints=table_constraints(config, torch.device(topology.compute_device)),
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        batch_size=config.data.batch_size // topology.world_size,
        stats=stats,
    )


def _host_memory() -> int:
    """Return the bytes a rank has here; TorchRec would assume 128 GiB, whatever there is."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _local_world_size()


def _device_memory(device: torch.device) -> int | None:
    """Return the bytes of the GPU; TorchRec would assume 32 GiB."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def _local_world_size() -> int:
    return min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), dist.get_world_size())


def table_constraints(config: RunConfig, device: torch.device) -> dict[str, ParameterConstraints]:
    """Return the sharding types that the planner may choose from, and the ids a sample it reckons with, by table."""
    sharing = resolve("head", config.head.type).tables
    constraints: dict[str, ParameterConstraints] = {}
    for table in config.features.tables:
        types: list[str] = [*table.sharding] if table.sharding is not None else _types(config, device)
        for copy, _ in table_copies(table.name, sharing, config.task_names):
            constraints[copy] = ParameterConstraints(
                sharding_types=types, pooling_factors=ids_a_sample(config.features, table.name)
            )
    return constraints


def ids_a_sample(features: FeaturesConfig, table: str) -> list[float]:
    """Return how many ids of a sample each feature looks up in a table: its longest list, or 1 where none is set.

    TorchRec would reckon with one id a table, whatever reads it, and with that plan too little memory and time for
    tables of sequences.
    """
    both: tuple[SparseConfig | SequenceConfig, ...] = (*features.sparse, *features.sequences)
    readers = [f for f in both if f.table == table]
    return [float(f.max_length or 1) for f in readers]


def _types(config: RunConfig, device: torch.device) -> list[str]:
    # Not data parallel: such tables have no fused optimizer, and TorchRec fails on a data-parallel EmbeddingCollection
    # that two features read.
    types = ["table_wise"] if device.type == "cpu" else ["table_wise", "row_wise", "table_row_wise"]
    if config.optim.sparse.type == "rowwise_adagrad":
        # Cut into columns, a table has one state a row and part: another optimizer, which no other plan can go on with.
        return types
    return [*types, "column_wise", "table_column_wise"]
