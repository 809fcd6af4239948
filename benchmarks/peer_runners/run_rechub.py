"""The job in torch-rechub: `DataGenerator`, its multi-task models, and `MTLTrainer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch_rechub.basic.features import DenseFeature, SparseFeature  # type: ignore[import-not-found]
from torch_rechub.basic.initializers import RandomNormal  # type: ignore[import-not-found]
from torch_rechub.models.multi_task import ESMM, MMOE, PLE, SharedBottom  # type: ignore[import-not-found]
from torch_rechub.trainers import MTLTrainer  # type: ignore[import-not-found]
from torch_rechub.utils.data import DataGenerator, PredictDataset  # type: ignore[import-not-found]

from benchmarks.peer_runners.measure import Array, Clock, main, read_columns
from benchmarks.peer_runners.spec import Spec


class Rechub:
    """See `benchmarks.peer_runners.measure.Contender`."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.is_esmm = spec.model == "esmm"
        self.dense = () if self.is_esmm else spec.dense
        # Its ESMM wants the labels of its outputs: conversion (not in the loss), click, click and conversion.
        self.targets = (spec.tasks[1], *spec.tasks) if self.is_esmm else spec.tasks
        self.notes = [
            "batch norm in gates too",
            "train_one_epoch, then evaluate: without fit's validation and copy of the weights after each epoch",
            *(["dense columns left out: its ESMM takes none"] if self.is_esmm else []),
        ]

    def run(self, clock: Clock) -> Mapping[str, float]:
        """See `Contender.run`."""
        spec = self.spec
        with clock.phase("read"):
            train, test = self._read(spec.train), self._read(spec.test)
            loader, _, _ = DataGenerator(*train).generate_dataloader(
                x_val=test[0], y_val=test[1], x_test=test[0], y_test=test[1], batch_size=spec.batch_size
            )
            _, held_out, _ = DataGenerator(*test).generate_dataloader(
                x_val=test[0], y_val=test[1], x_test=test[0], y_test=test[1], batch_size=spec.eval_batch_size
            )
        with clock.phase("build"):
            self.model = self._model()
            kinds = ["classification"] * len(self.targets)
            self.trainer = MTLTrainer(self.model, kinds, optimizer_params={"lr": spec.lr}, n_epoch=spec.epochs)
        with clock.phase("train"):
            for _ in range(spec.epochs):
                self.trainer.train_one_epoch(loader)
        with clock.phase("evaluate"):
            scores = self.trainer.evaluate(self.model, held_out)
        self.inputs = test[0]
        return dict(zip(self.targets, map(float, scores), strict=True))

    def predict(self) -> Array:
        """See `Contender.predict`."""
        loader = torch.utils.data.DataLoader(PredictDataset(self.inputs), batch_size=self.spec.eval_batch_size)
        predictions = np.asarray(self.trainer.predict(self.model, loader))
        return predictions[:, -len(self.spec.tasks) :]

    def num_parameters(self) -> int:
        """See `Contender.num_parameters`."""
        return sum(p.numel() for p in self.model.parameters())

    def _read(self, path: str) -> tuple[dict[str, Array], Array]:
        columns = read_columns(path, [*self.spec.sparse, *self.dense, *self.spec.tasks])
        labels = np.stack([columns[name] for name in self.targets], axis=1)
        return {name: columns[name] for name in (*self.spec.sparse, *self.dense)}, labels

    def _model(self) -> Any:  # noqa: ANN401
        spec, initializer = self.spec, RandomNormal(0, self.spec.init_std)
        sparse = [
            SparseFeature(name, rows, embed_dim=spec.dim, initializer=initializer) for name, rows in spec.sparse.items()
        ]
        features = [*sparse, *(DenseFeature(name) for name in self.dense)]
        hidden, tower = {"dims": list(spec.hidden)}, {"dims": list(spec.tower)}
        kinds, towers = ["classification"] * len(spec.tasks), [tower] * len(spec.tasks)
        if self.is_esmm:
            half = len(sparse) // 2
            return ESMM(sparse[:half], sparse[half:], cvr_params=hidden, ctr_params=hidden)
        if spec.model == "mmoe":
            return MMOE(features, kinds, spec.experts, hidden, towers)
        if spec.model == "ple":
            return PLE(features, kinds, 1, spec.task_experts, spec.shared_experts, hidden, towers)
        return SharedBottom(features, kinds, hidden, towers)


if __name__ == "__main__":
    main(Rechub)
