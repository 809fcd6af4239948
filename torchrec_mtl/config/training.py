"""Optimizers, schedule, and the course of training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from torchrec_mtl.config.base import Config, Name
from torchrec_mtl.config.later import LATER

Fraction = Annotated[float, Field(ge=0, le=1)]


class SparseOptimConfig(Config):
    """Optimizer of the embedding tables, fused into the backward kernels."""

    type: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    """adam needs CUDA."""
    lr: PositiveFloat = 0.02
    """Learning rate."""
    eps: PositiveFloat = 1.0e-8
    """Added to the denominator; sgd has none."""
    weight_decay: NonNegativeFloat = 0.0
    """L2; applied to the rows of a batch only."""


class DenseOptimConfig(Config):
    """Optimizer of everything but the tables."""

    type: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    lr: PositiveFloat = 1.0e-3
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """L2; decoupled with adamw."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the dense gradient."""


class ScheduleConfig(Config):
    """Factor on both learning rates, a function of the step alone; it spans one phase of a head that has several."""

    type: Literal["constant", "cosine", "step"] = "constant"
    warmup: Fraction = 0.0
    """Fraction of the steps over which the factor rises linearly from 0."""
    end: Fraction = 0.0
    """cosine: the factor at the last step."""
    every: Annotated[float, Field(gt=0, le=1)] = 0.3
    """step: fraction of the steps after which the factor is multiplied by ``factor``, again and again."""
    factor: PositiveFloat = 0.1
    """step: see ``every``."""


class OptimConfig(Config):
    """Both optimizers and their schedule."""

    sparse: SparseOptimConfig = SparseOptimConfig()
    dense: DenseOptimConfig = DenseOptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()


class MonitorConfig(Config):
    """The evaluation metric that decides the best checkpoint and early stopping."""

    metric: Name = "loss"
    """``task/metric`` (metric names of the docs), or ``loss``: the sum of the tasks' weighted losses."""
    mode: Literal["auto", "min", "max"] = "auto"
    """auto: max for auc, gauc, spearman, gini; min otherwise."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations without a new best."""


class TrainConfig(Config):
    """The course of training."""

    epochs: PositiveInt = 1
    """Passes over the training data; a head with several phases says which of them this is for."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps of all phases; the schedules then end there too."""
    seed: NonNegativeInt = 0
    """Of initial values, order of rows, and noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a device."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations; by default one at the end of each epoch."""
    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints; by default one at each evaluation."""
    keep: PositiveInt = 2
    """Checkpoints kept, beside the best."""
    save: Annotated[Literal["auto", "wait", "background"], LATER] = "auto"
    """wait: training waits until a checkpoint is written; background: it is copied in memory and written while training
    goes on; auto: background where the copy fits in an eighth of the free memory."""
    log_every: PositiveInt = 50
    """Steps between lines of metrics.jsonl."""
    window: PositiveInt = 100_000
    """Rows of the windowed metrics written during training."""
    monitor: MonitorConfig = MonitorConfig()
    pipeline: Literal["auto", "base", "sparse_dist", "prefetch_sparse_dist"] = "auto"
    """TorchRec train pipeline; auto: base on one CPU process (9 % faster there), sparse_dist otherwise;
    prefetch_sparse_dist: rows of cached tables are fetched ahead (CUDA, kernel: fused_uvm_caching)."""
    precision: Annotated[Literal["fp32", "bf16"], LATER] = "fp32"
    """bf16: matrix products of bottom and head in bf16; parameters, what they hand over, losses, gradients at the
    boundary, and batch norm stay fp32."""
    comms: Annotated[Literal["fp32", "fp16", "bf16"], LATER] = "fp32"
    """What ranks exchange of embeddings and their gradients; no effect with one rank; bf16 needs CUDA."""
    references: bool = False
    """At the end, print two reference models beside the trained one: a constant, and logistic/ridge regression."""
    sinks: Annotated[tuple[Name, ...], LATER] = ()
    """Further places for the numbers of metrics.jsonl, as package.module:Class, such as an experiment tracker."""
    timeout_s: PositiveFloat = 600.0
    """Longest wait for another rank, and for a batch from storage, seconds; after half of it a rank says where it
    stands."""
