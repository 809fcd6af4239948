"""The job in NextRec: arrays in memory, `compile`, `fit`, `evaluate`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from nextrec.basic.features import DenseFeature, SparseFeature  # type: ignore[import-not-found]
from nextrec.models.multitask.esmm import ESMM  # type: ignore[import-not-found]
from nextrec.models.multitask.mmoe import MMOE  # type: ignore[import-not-found]
from nextrec.models.multitask.ple import PLE  # type: ignore[import-not-found]
from nextrec.models.multitask.share_bottom import ShareBottom  # type: ignore[import-not-found]

from benchmarks.peer_runners.measure import Array, Clock, main, read_columns
from benchmarks.peer_runners.spec import Spec


class NextRec:
    """See `benchmarks.peer_runners.measure.Contender`."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        os.environ["NEXTREC_LOG_DIR"] = spec.folder
        self.notes = [
            "training includes its metrics over the training rows, and a checkpoint each epoch",
            "row 0 of each table is its padding row: id 0 learns nothing",
        ]
        if spec.model == "ple":
            self.notes.append("its one level computes the shared gate too, which nothing reads")

    def run(self, clock: Clock) -> Mapping[str, float]:
        """See `Contender.run`."""
        spec = self.spec
        columns = [*spec.sparse, *spec.dense, *spec.tasks]
        with clock.phase("read"):
            train = read_columns(spec.train, columns)
            self.test = read_columns(spec.test, columns)
        with clock.phase("build"):
            self.model = self._model()
            self.model.compile(optimizer="adam", optimizer_params={"lr": spec.lr}, loss=["bce"] * len(spec.tasks))
        with clock.phase("train"):
            self.model.fit(
                train_data=train,
                metrics=["auc"],
                epochs=spec.epochs,
                batch_size=spec.batch_size,
                early_stop_patience=0,
                use_tensorboard=False,
                summary_sections=[],
            )
        with clock.phase("evaluate"):
            found = self.model.evaluate(self.test, batch_size=spec.eval_batch_size)
        return {name: float(value) for name, value in found["overall"].items()}

    def predict(self) -> Array:
        """See `Contender.predict`."""
        inputs = {name: self.test[name] for name in (*self.spec.sparse, *self.spec.dense)}
        return np.asarray(self.model.predict(inputs, batch_size=self.spec.eval_batch_size, return_dataframe=False))

    def num_parameters(self) -> int:
        """See `Contender.num_parameters`."""
        return sum(p.numel() for p in self.model.parameters())

    def _model(self) -> Any:  # noqa: ANN401
        spec = self.spec
        init = {"std": spec.init_std}
        hidden = {"hidden_dims": list(spec.hidden), "norm_type": "batch_norm"}
        towers = [{"hidden_dims": list(spec.tower), "norm_type": "batch_norm"}] * len(spec.tasks)
        common: dict[str, Any] = {
            "dense_features": [DenseFeature(name) for name in spec.dense],
            "sparse_features": [
                SparseFeature(name, rows, embedding_dim=spec.dim, init_params=init)
                for name, rows in spec.sparse.items()
            ],
            "sequence_features": [],
            "target": list(spec.tasks),
            "task": ["binary"] * len(spec.tasks),
            "session_id": "peers",
        }
        if spec.model == "esmm":
            return ESMM(ctr_mlp_params=hidden, cvr_mlp_params=hidden, **common)
        common["tower_mlp_params_list"] = towers
        if spec.model == "shared_bottom":
            return ShareBottom(bottom_mlp_params=hidden, **common)
        if spec.model == "mmoe":
            return MMOE(expert_mlp_params=hidden, num_experts=spec.experts, **common)
        return PLE(
            shared_expert_mlp_params=hidden,
            specific_expert_mlp_params=[hidden] * len(spec.tasks),
            num_shared_experts=spec.shared_experts,
            num_specific_experts=spec.task_experts,
            num_levels=1,
            **common,
        )


if __name__ == "__main__":
    main(NextRec)
