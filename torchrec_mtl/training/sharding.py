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
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    Stats,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder, PipelineType

from torchrec_mtl.config.checks import refused_in_runs
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.initial import initialise_tables
from torchrec_mtl.model import MultiTaskModel
from torchrec_mtl.training.comms import Codecs, comm_codecs
from torchrec_mtl.training.constraints import prefetches, table_constraints
from torchrec_mtl.training.optim import fuse_sparse_optimizer

RESERVED = 0.1
"""Share of a GPU's memory that is kept from tables, for the dense part and what a step needs."""


def sharders(codecs: Codecs | None = None) -> list[ModuleSharder[nn.Module]]:
    """Return the sharders of both collections.

    Args:
        codecs: of what ranks exchange, from `comm_codecs`; None: fp32.
    """
    # Without the mode FBGEMM takes a weight decay and ignores it.
    fused = {"weight_decay_mode": WeightDecayMode.L2}
    both = [
        EmbeddingBagCollectionSharder(fused_params=dict(fused), qcomm_codecs_registry=codecs),
        EmbeddingCollectionSharder(fused_params=dict(fused), qcomm_codecs_registry=codecs),
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
    codecs = comm_codecs(config, device, dist.get_world_size())
    plan = planner.collective_plan(model, sharders(codecs), group)
    with warnings.catch_warnings():
        # TorchRec hands DDP an argument that torch has renamed; nothing a user could do about it.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        # Its data parallel wants the same graph at every step: see Objective.activate.
        sharded = DistributedModelParallel(
            model,
            device=device,
            plan=plan,
            sharders=sharders(codecs),
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
        enumerator=make_enumerator(config, topology),
        constraints=table_constraints(config, torch.device(topology.compute_device)),
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        batch_size=config.data.batch_size // topology.world_size,
        stats=stats,
    )


def make_enumerator(config: RunConfig, topology: Topology) -> EmbeddingEnumerator:
    """Return what lists the ways to cut each table, with estimates of memory and time.

    Args:
        config: the run.
        topology: from `make_topology`.
    """
    constraints = table_constraints(config, torch.device(topology.compute_device))
    storage = EmbeddingStorageEstimator(topology=topology, constraints=constraints)
    if prefetches(config):  # three batches are on the GPU at a time
        storage = EmbeddingStorageEstimator(
            topology=topology,
            constraints=constraints,
            pipeline_type=PipelineType.TRAIN_PREFETCH_SPARSE_DIST,
            run_embedding_at_peak_memory=True,
        )
    return EmbeddingEnumerator(
        topology=topology,
        batch_size=config.data.batch_size // topology.world_size,
        constraints=constraints,
        estimator=[EmbeddingPerfEstimator(topology=topology, constraints=constraints), storage],
    )


def _host_memory() -> int:
    """Return the bytes a rank has here; TorchRec would assume 128 GiB, whatever there is."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _local_world_size()


def _device_memory(device: torch.device) -> int | None:
    """Return the bytes of the GPU; TorchRec would assume 32 GiB."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def _local_world_size() -> int:
    return min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), dist.get_world_size())
