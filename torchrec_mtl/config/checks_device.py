"""What FBGEMM and TorchRec lack on the CPU, and what nothing would come of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchrec_mtl.config.draft import Draft
from torchrec_mtl.config.features import TableConfig
from torchrec_mtl.config.training import TrainConfig
from torchrec_mtl.device import has_cuda

_CPU_SHARDING = frozenset({"table_wise", "column_wise", "table_column_wise"})
_REMEDY = "or set train.device to cuda for a machine with one"


def check_device(draft: Draft) -> Iterator[str]:
    """Yield what the run's device cannot do; CUDA is asked for only where it matters, since that imports torch."""
    sparse = draft.optim.sparse
    if sparse.weight_decay and sparse.type in {"sgd", "adagrad"}:
        yield f"optim.sparse.weight_decay: FBGEMM's {sparse.type} ignores it; set it to 0, or take another type on CUDA"
    for i, table in draft.tables.items():
        if table.cache_load_factor is not None and table.kernel in {"fused", "fused_uvm"}:
            yield (
                f"features.tables.{i}.cache_load_factor: {table.cache_load_factor:g} of a cache that kernel: "
                f"{table.kernel} does not have; take kernel: fused_uvm_caching, or remove it"
            )
    lacking = [*_optimizer(draft), *_tables(draft.tables), *_training(draft.train)]
    if lacking and not _has_cuda(draft.train):
        yield from lacking


def for_the_cpu(raw: Mapping[str, Any]) -> list[str]:
    """Return overrides for a config that was trained by on a GPU, so that its model can be used without one.

    They say where tables lie and how ranks exchange what they look up: nothing of what the model is.

    Args:
        raw: of a config's YAML, not checked yet.
    """
    features = raw.get("features")
    listed = features.get("tables") if isinstance(features, Mapping) else None
    tables = range(len(listed) if isinstance(listed, list) else 0)
    places = [f"features.tables.{i}.{key}" for i in tables for key in ("sharding", "cache_load_factor")]
    kernels = [f"features.tables.{i}.kernel=auto" for i in tables]
    return ["train.pipeline=auto", "train.comms=fp32", *(f"{place}=null" for place in places), *kernels]


def _optimizer(draft: Draft) -> Iterator[str]:
    sparse = draft.optim.sparse
    if sparse.type == "adam":
        yield f"optim.sparse.type: FBGEMM has no fused adam on CPU; use rowwise_adagrad, adagrad, or sgd, {_REMEDY}"
    elif sparse.weight_decay and sparse.type == "rowwise_adagrad":
        yield f"optim.sparse.weight_decay: FBGEMM ignores it on CPU; set it to 0, {_REMEDY}"


def _tables(tables: dict[int, TableConfig]) -> Iterator[str]:
    for i, table in tables.items():
        path = f"features.tables.{i}"
        if table.sharding is not None and not _CPU_SHARDING & set(table.sharding):
            yield f"{path}.sharding: TorchRec has no {' or '.join(table.sharding)} on CPU; add table_wise, {_REMEDY}"
        if table.kernel.startswith("fused_uvm"):
            yield f"{path}.kernel: {table.kernel} is of GPUs, and on CPU all memory is the host's; remove it, {_REMEDY}"
        elif table.cache_load_factor is not None:
            yield f"{path}.cache_load_factor: on CPU there is no cache; remove it, {_REMEDY}"


def _training(train: TrainConfig) -> Iterator[str]:
    if train.pipeline == "prefetch_sparse_dist":
        yield f"train.pipeline: prefetch_sparse_dist fills a GPU's cache; use auto, {_REMEDY}"
    if train.comms == "bf16":
        yield f"train.comms: gloo, which ranks on CPU talk by, has no bf16; use fp16, {_REMEDY}"


def _has_cuda(train: TrainConfig) -> bool:
    """Whether the run's device is, or will be, CUDA."""
    return train.device == "cuda" or (train.device == "auto" and has_cuda())
