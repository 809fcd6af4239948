"""A config made live: encoder, sharded model, optimizers, pipeline; training, evaluation, prediction start from it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import (
    PrefetchTrainPipelineSparseDist,
    TrainPipeline,
    TrainPipelineBase,
    TrainPipelineSparseDist,
)

from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import DataFile, open_files
from torchrec_mtl.data.negatives import Negatives
from torchrec_mtl.data.prefetch import prefetch
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import build_model
from torchrec_mtl.objective import Objective, StepOutput
from torchrec_mtl.quiet import leave_out_advice
from torchrec_mtl.training.candidates import TrainingCandidates
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.constraints import prefetches
from torchrec_mtl.training.evaluation import Evaluation, evaluate
from torchrec_mtl.training.gate_use import GateUse
from torchrec_mtl.training.optim import Optimizers, UpdateMasks
from torchrec_mtl.training.retrieval import corpus_metrics
from torchrec_mtl.training.sharding import shard


@dataclasses.dataclass(frozen=True)
class Session:
    """What a run needs on one rank.

    Attributes:
        config: the run.
        device: of this rank.
        encoder: columns to batches.
        model: sharded.
        objective: its dense part.
        optimizers: of tables and dense part.
        sparse_dist: a ``TrainPipelineSparseDist``, or None where the base pipeline is used.
        scales: of the labels, which losses are built with.
        statistics: of the training data.
        negatives: draws items beside the rows of a training batch.
    """

    config: RunConfig
    device: torch.device
    encoder: Encoder
    model: DistributedModelParallel
    objective: Objective
    optimizers: Optimizers
    sparse_dist: TrainPipelineSparseDist[Batch, StepOutput] | None
    scales: Mapping[str, LabelScale]
    statistics: Statistics
    negatives: Negatives | None = None

    def reader(self, files: Sequence[DataFile], *, train: bool) -> ParquetReader:
        """Return a reader of this rank's share; evaluation reads in file order."""
        data = self.config.data
        return ParquetReader(
            files,
            self.encoder,
            batch_size=data.batch_size if train else data.eval_batch_size or 4 * data.batch_size,
            streams=data.streams,
            window=data.window,
            shuffle=train and data.shuffle,
            seed=self.config.train.seed,
            rank=rank(),
            world_size=world_size(),
            negatives=self.negatives if train else None,
        )

    def read(self, reader: ParquetReader, epoch: int = 0, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yield an epoch's batches, read ahead in a thread; page-locked for CUDA, so that copies overlap."""
        batches = reader.epoch(epoch, first_step)
        if self.device.type == "cuda":
            batches = (batch.pin_memory() for batch in batches)
        return prefetch(batches, self.config.data.prefetch, self.config.train.timeout_s)

    def run(self, batches: Iterator[Batch]) -> Iterator[StepOutput]:
        """Put batches through the pipeline: training steps in train mode, forward passes in evaluation mode.

        The pipeline looks ahead, so ``batches`` must end where the mode is to change.
        """
        # The base pipeline cannot be used again after its data ended; a new one costs nothing.
        pipeline: TrainPipeline[Batch, StepOutput] = self.sparse_dist or TrainPipelineBase(
            self.model, self.optimizers.combined, self.device
        )
        try:
            while True:
                try:
                    output = pipeline.progress(batches)
                except StopIteration:
                    return
                yield output
        finally:
            if self.sparse_dist is not None:
                self.sparse_dist.reset()  # after an early end, what is in flight belongs to no later call

    def evaluate(self, files: Sequence[DataFile], *, gates: GateUse | None = None, grouped: bool = False) -> Evaluation:
        """Compute exact metrics over all ranks; the model is left in train mode.

        Args:
            files: what to evaluate on.
            gates: watched meanwhile.
            grouped: group the rows by prediction, too.
        """
        self.model.eval()
        batches = self.read(self.reader(files, train=False))
        try:
            with torch.no_grad():
                outputs = nullcontext(self.run(batches)) if gates is None else gates.watching(self.run(batches))
                with outputs as watched:
                    evaluation = evaluate(watched, self.config.tasks, grouped=grouped)
                if self.config.retrieval is None:
                    return evaluation
                found = corpus_metrics(self, files, open_files(self.config.retrieval.items))
        finally:
            batches.close()
            self.model.train()
        tasks = {task: metrics | found[task] for task, metrics in evaluation.tasks.items()}
        return dataclasses.replace(evaluation, tasks=tasks)

    def tensors(self) -> dict[str, Any]:
        """Return all state of a checkpoint that is tensors."""
        rng = {f"cpu_rank{rank()}": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng[f"cuda_rank{rank()}"] = torch.cuda.get_rng_state(self.device)
        return {"model": self.model.state_dict(), "optim": self.optimizers.state_dict(), "rng": rng}

    def forget_cached_rows(self) -> None:
        """Have a GPU forget the rows that it caches of tables in host memory, after these were written in place."""
        if self.device.type == "cuda":
            self.model.load_state_dict(cast(Any, self.model.state_dict()))

    def agree(self, names: Sequence[str]) -> None:
        """Give every rank what rank 0 has in these buffers of the head."""
        for name in names:
            dist.broadcast(self.objective.head.get_buffer(name), src=0)

    def restore(self, checkpoints: Checkpoints, which: str, *, weights_only: bool = False) -> None:
        """Load the ``latest`` or ``best`` checkpoint; with ``weights_only`` leave optimizers and RNG alone."""
        tensors = self.tensors()
        if weights_only:
            tensors = {"model": tensors["model"]}
        checkpoints.load(tensors, which)
        self.model.load_state_dict(tensors["model"])
        if weights_only:
            return
        self.optimizers.load_state_dict(tensors["optim"])
        torch.set_rng_state(tensors["rng"][f"cpu_rank{rank()}"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng"][f"cuda_rank{rank()}"], self.device)


def open_session(
    config: RunConfig,
    statistics: Statistics,
    device: torch.device,
    *,
    labels: bool = True,
    candidates: TrainingCandidates | None = None,
) -> Session:
    """Build, shard, and initialise everything of a run.

    Args:
        config: the run.
        statistics: of its training data.
        device: of this rank.
        labels: False where data without labels is read.
        candidates: items as negatives, where the head is to be trained with them.

    Raises:
        ValueError: the world size does not fit the batch, or the planner finds no plan.
    """
    leave_out_advice()
    streams = config.data.streams
    if streams % dist.get_world_size():
        fits = ", ".join(str(n) for n in range(1, streams + 1) if streams % n == 0)
        raise ValueError(
            f"{dist.get_world_size()} ranks do not divide data.streams = {streams}; use {fits} ranks, or set "
            "data.streams to a multiple of the ranks (this changes the order of samples)"
        )
    scales = {name: LabelScale.of(s) for name, s in statistics.labels.items()}
    model = build_model(config, scales, device=device)
    objective = model.objective
    encoder = Encoder(
        config.data,
        config.features,
        config.tasks,
        statistics,
        labels=labels,
        frequencies=None if candidates is None else candidates.frequencies,
        query=None if candidates is None else candidates.query,
    )
    sharded = shard(model, config, device)
    sharded.train()
    optimizers = Optimizers(sharded, config.optim.dense, config.optim.sparse.lr, _update_masks(objective, config))
    return Session(
        config=config,
        device=device,
        encoder=encoder,
        model=sharded,
        objective=objective,
        optimizers=optimizers,
        sparse_dist=_pipeline(config)(sharded, cast(Any, optimizers.combined), device)
        if _overlaps(config, device)
        else None,
        scales=scales,
        statistics=statistics,
        negatives=None if candidates is None else candidates.negatives,
    )


def _update_masks(objective: Objective, config: RunConfig) -> UpdateMasks | None:
    """Return what to ask before each step, where some phase gives a step to one task, or freezes something."""
    head = objective.head
    if not any(phase.alternate or phase.masked for phase in head.phases(config.train.epochs)):
        return None

    def masks() -> Sequence[tuple[nn.Parameter, torch.Tensor]]:
        frozen = list(objective.bottoms.parameters()) if head.freezes_bottom else []
        nothing = [(p, torch.zeros((), dtype=torch.bool, device=p.device)) for p in frozen]
        return (*head.update_masks(), *nothing)

    return masks


def _overlaps(config: RunConfig, device: torch.device) -> bool:
    if config.train.pipeline != "auto":
        return config.train.pipeline != "base"
    return device.type == "cuda" or dist.get_world_size() > 1


def _pipeline(config: RunConfig) -> type[TrainPipelineSparseDist[Batch, StepOutput]]:
    return PrefetchTrainPipelineSparseDist if prefetches(config) else TrainPipelineSparseDist


def take(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Return the next ``count`` batches only, so that a pipeline drains after them and the rest stays in place."""
    return itertools.islice(batches, count)
