"""A config and a cluster to a plan, by the planner that training uses, on a model without memory (``meta``)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, cast

import torch
from torch import nn
from torchrec.distributed.planner.types import PlannerError, PlannerErrorType, ShardingOption, Stats, Topology
from torchrec.distributed.planner.types import Shard as PlannerShard
from torchrec.distributed.types import ModuleSharder

from torchrec_mtl.config.checks import refused_in_runs
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.model import MultiTaskModel, build_model
from torchrec_mtl.planning.result import (
    Cluster,
    Cost,
    Plan,
    RankPlan,
    ShardPlan,
    Shortage,
    Summary,
    TablePlan,
    TooLarge,
)
from torchrec_mtl.planning.sizes import largest, needed_bytes
from torchrec_mtl.training.comms import comm_codecs
from torchrec_mtl.training.optim import fuse_sparse_optimizer
from torchrec_mtl.training.sharding import RESERVED, make_enumerator, make_planner, make_topology, sharders

# Copies of a dense weight: itself, its gradient, and the optimizer's.
_DENSE_COPIES = {"adam": 4, "adamw": 4, "adagrad": 3, "sgd": 2}
_NO_ROOM = (PlannerErrorType.INSUFFICIENT_STORAGE, PlannerErrorType.STRICT_CONSTRAINTS)


def solve(config: RunConfig, cluster: Cluster) -> Plan | Shortage:
    """Plan a run for a cluster.

    Args:
        config: checked for ``cluster.device``.
        cluster: that the run would have.

    Returns:
        The plan that training would make there, or what is missing.

    Raises:
        ValueError: the ranks do not share the batch, or the tables' optimizer ignores an option.
    """
    _check_batch(config, cluster)
    if problems := refused_in_runs(config):
        raise ValueError("\n".join(problems))
    hbm, ddr = available(cluster)
    shortage = Shortage(cluster, hbm, ddr, needed_bytes(config), largest(config), (), 0.0)
    if shortage.needed_bytes > shortage.capacity:
        return shortage
    model = meta_model(config, cluster.device)
    start = time.perf_counter()
    recorder, found = _run_planner(model, config, cluster)
    seconds = time.perf_counter() - start
    if not found:
        return replace(shortage, too_large=_too_large(recorder.search_space, shortage), seconds=seconds)
    tables = _tables(recorder.options, cluster.ranks, [table.name for table in config.features.tables])
    ranks = _ranks(tables, cluster)
    return Plan(
        cluster=cluster,
        batch_per_rank=config.data.batch_size // cluster.ranks,
        hbm_available=hbm,
        ddr_available=ddr,
        dense_bytes=_dense_bytes(model, config),
        tables=tables,
        ranks=ranks,
        summary=Summary.of(ranks),
        seconds=seconds,
        proposals=recorder.proposals,
    )


def explained(shortage: Shortage, config: RunConfig) -> Shortage:
    """Return a shortage with the tables that are too large by themselves, also where the sizes alone had said enough.

    Args:
        shortage: from `solve`.
        config: as given to it.
    """
    if shortage.too_large:
        return shortage
    enumerator = make_enumerator(config, _topology(shortage.cluster))
    options = enumerator.enumerate(meta_model(config, shortage.cluster.device), _sharders(config, shortage.cluster))
    return replace(shortage, too_large=_too_large(options, shortage))


def meta_model(config: RunConfig, device: str) -> MultiTaskModel:
    """Return the model that training would shard, with all parameters on ``meta`` and its tables' optimizer known."""
    model = build_model(config, {}, device="meta", tables="meta")
    # Its state counts as memory.
    fuse_sparse_optimizer(model.embeddings.parameters(), config.optim.sparse, torch.device(device))
    return model


def available(cluster: Cluster) -> tuple[int, int]:
    """Return the bytes that tables may take of a GPU (0 on the CPU) and of a rank's host memory."""
    hbm = 0 if cluster.hbm_bytes is None else int((1 - RESERVED) * cluster.hbm_bytes)  # as TorchRec rounds
    return hbm, cluster.ddr_bytes


def _check_batch(config: RunConfig, cluster: Cluster) -> None:
    batch = config.data.batch_size
    if batch % cluster.ranks:
        near = max(round(batch / cluster.ranks), 1) * cluster.ranks
        raise ValueError(
            f"data.batch_size: the global batch of {batch} cannot be shared by {cluster.ranks} ranks "
            f"(--nodes {cluster.nodes} --gpus {cluster.gpus}); take data.batch_size={near}, or other nodes"
        )


def _run_planner(model: MultiTaskModel, config: RunConfig, cluster: Cluster) -> tuple[_Recorder, bool]:
    """Return what the planner told, and whether it found a plan."""
    recorder = _Recorder()
    try:
        make_planner(config, _topology(cluster), recorder).plan(model, _sharders(config, cluster))
    except PlannerError as error:
        if error.error_type not in _NO_ROOM:
            raise ValueError(f"TorchRec's planner refuses this config: {str(error).splitlines()[0]}") from None
        return recorder, False
    return recorder, True


def _sharders(config: RunConfig, cluster: Cluster) -> list[ModuleSharder[nn.Module]]:
    """Return those of training: what ranks exchange in 16 bits takes less time."""
    return sharders(comm_codecs(config, torch.device(cluster.device), cluster.ranks))


def _topology(cluster: Cluster) -> Topology:
    return make_topology(
        cluster.ranks, cluster.gpus, cluster.device, hbm_bytes=cluster.hbm_bytes, ddr_bytes=cluster.ddr_bytes
    )


class _Recorder(Stats):
    """Keeps what the planner tells its log: the plan, or the options that did not fit."""

    def __init__(self) -> None:
        self.options: Sequence[ShardingOption] = ()
        self.search_space: Sequence[ShardingOption] = ()
        self.proposals = 0

    def log(self, **told: Any) -> None:  # type: ignore[override]  # noqa: ANN401
        """Called once by the planner, whether it found a plan or not."""
        self.options = told["best_plan"]
        self.search_space = getattr(told["enumerator"], "last_stored_search_space", None) or ()
        self.proposals = told["num_proposals"]


def _tables(options: Sequence[ShardingOption], ranks: int, order: Sequence[str]) -> tuple[TablePlan, ...]:
    place = {name: i for i, name in enumerate(order)}
    found = [_table(option, ranks) for option in options]
    return tuple(sorted(found, key=lambda t: (place[t.name.split("@")[0]], t.name)))


def _table(option: ShardingOption, ranks: int) -> TablePlan:
    shards = [shard for shard in option.shards if prod(shard.size)]
    lookups = _lookups(option, shards, ranks)
    return TablePlan(
        name=option.name,
        rows=int(option.tensor.shape[0]),
        dim=int(option.tensor.shape[1]),
        sharding=option.sharding_type,
        kernel=option.compute_kernel,
        shards=tuple(_shard(shard, lookups) for shard in shards),
    )


def _shard(shard: PlannerShard, lookups: float) -> ShardPlan:
    storage, perf = shard.storage, shard.perf
    assert storage is not None, "TorchRec fills in storage and perf before it makes a plan"
    assert perf is not None, "TorchRec fills in storage and perf before it makes a plan"
    return ShardPlan(
        rank=cast(int, shard.rank),
        rows=int(shard.size[0]),
        columns=int(shard.size[1]),
        hbm_bytes=int(storage.hbm),
        ddr_bytes=int(storage.ddr),
        lookups=lookups,
        cost=Cost(perf.fwd_compute, perf.fwd_comms, perf.bwd_compute, perf.bwd_comms, perf.prefetch_compute),
    )


def _lookups(option: ShardingOption, shards: Sequence[PlannerShard], ranks: int) -> float:
    """Return the ids of a step, of the global batch, that reach one part: parts that split the rows share them."""
    ids = sum(option.input_lengths) * option.batch_size * ranks
    return float(ids / len({shard.offset[0] for shard in shards}))


def _ranks(tables: Sequence[TablePlan], cluster: Cluster) -> tuple[RankPlan, ...]:
    held: Mapping[int, list[tuple[str, ShardPlan]]] = {rank: [] for rank in range(cluster.ranks)}
    for table in tables:
        for shard in table.shards:
            held[shard.rank].append((table.name, shard))
    return tuple(
        RankPlan(
            rank=rank,
            node=rank // cluster.gpus,
            tables=tuple(dict.fromkeys(name for name, _ in parts)),
            shards=len(parts),
            hbm_bytes=sum(s.hbm_bytes for _, s in parts),
            ddr_bytes=sum(s.ddr_bytes for _, s in parts),
            lookups=sum(s.lookups for _, s in parts),
            cost=sum((s.cost for _, s in parts), start=Cost()),
        )
        for rank, parts in held.items()
    )


def _dense_bytes(model: MultiTaskModel, config: RunConfig) -> int:
    dense = sum(p.numel() * p.element_size() for p in model.objective.parameters())
    return dense * _DENSE_COPIES[config.optim.dense.type]


def _too_large(search_space: Sequence[ShardingOption], shortage: Shortage) -> tuple[TooLarge, ...]:
    """Return the tables none of whose options fits on ranks that hold nothing else, largest first."""
    hbm, ddr = shortage.hbm_available, shortage.ddr_available
    by_table: dict[str, list[ShardingOption]] = {}
    for option in search_space:
        by_table.setdefault(option.name, []).append(option)
    found = []
    for name, options in by_table.items():
        parts = [_largest_part(option) for option in options]
        if not any(h <= hbm and d <= ddr for h, d in parts):
            # Host memory holds a cache's table whole and the GPU a share of it: the first says whether it fits.
            in_host = [d for _, d in parts if d]
            on_gpu = [h for h, d in parts if not d]
            types = tuple(sorted({o.sharding_type for o in options}))
            found.append(TooLarge(name, types, min(on_gpu, default=None), min(in_host, default=None)))
    return tuple(sorted(found, key=lambda t: -max(t.hbm_bytes or 0, t.ddr_bytes or 0)))


def _largest_part(option: ShardingOption) -> tuple[int, int]:
    stored = [shard.storage for shard in option.shards if shard.storage is not None]
    return max(int(s.hbm) for s in stored), max(int(s.ddr) for s in stored)
