"""The job in DeepCTR-Torch: one float matrix of all inputs, `compile`, `fit`, `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat  # type: ignore[import-not-found]
from deepctr_torch.models.multitask import ESMM, MMOE, PLE, SharedBottom  # type: ignore[import-not-found]

from benchmarks.peer_runners.measure import Array, Clock, main, read_columns
from benchmarks.peer_runners.spec import Spec


class DeepCTR:
    """See `benchmarks.peer_runners.measure.Contender`."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        # Its PLE builds specific_expert_num shared experts and fails where shared_expert_num is another number.
        self.shared_experts = spec.task_experts
        self.notes = [
            "its own AUC is over the labels of all tasks together",
            "its l2 penalty on tables (1e-5 by default) is off",
        ]
        if spec.model == "ple" and self.shared_experts != spec.shared_experts:
            self.notes.append(
                f"shared experts: {self.shared_experts}, not {spec.shared_experts}; it makes as many as specific ones"
            )

    def run(self, clock: Clock) -> Mapping[str, float]:
        """See `Contender.run`."""
        spec = self.spec
        with clock.phase("read"):
            train, labels = self._read(spec.train)
            self.inputs, held_out = self._read(spec.test)
        with clock.phase("build"):
            self.model = self._model()
            adam = torch.optim.Adam(self.model.parameters(), lr=spec.lr)
            self.model.compile(adam, loss=["binary_crossentropy"] * len(spec.tasks), metrics=["auc"])
        with clock.phase("train"):
            self.model.fit(train, labels, batch_size=spec.batch_size, epochs=spec.epochs, verbose=0)
        with clock.phase("evaluate"):
            scores = self.model.evaluate(self.inputs, held_out, spec.eval_batch_size)
        return {"all tasks": float(scores["auc"])}

    def predict(self) -> Array:
        """See `Contender.predict`."""
        return np.asarray(self.model.predict(self.inputs, self.spec.eval_batch_size))

    def num_parameters(self) -> int:
        """See `Contender.num_parameters`."""
        return sum(p.numel() for p in self.model.parameters())

    def _read(self, path: str) -> tuple[dict[str, Array], Array]:
        spec = self.spec
        columns = read_columns(path, [*spec.sparse, *spec.dense, *spec.tasks])
        labels = np.stack([columns[name] for name in spec.tasks], axis=1)
        return {name: columns[name] for name in (*spec.sparse, *spec.dense)}, labels

    def _model(self) -> Any:  # noqa: ANN401
        spec = self.spec
        features = [SparseFeat(name, rows, embedding_dim=spec.dim) for name, rows in spec.sparse.items()]
        features += [DenseFeat(name, 1) for name in spec.dense]
        common: dict[str, Any] = {
            "l2_reg_embedding": 0,
            "l2_reg_linear": 0,
            "init_std": spec.init_std,
            "seed": spec.seed,
            "dnn_use_bn": True,
            "task_names": spec.tasks,
        }
        if spec.model == "esmm":
            return ESMM(features, tower_dnn_hidden_units=spec.hidden, **common)
        common["tower_dnn_hidden_units"] = spec.tower
        if spec.model == "shared_bottom":
            return SharedBottom(features, bottom_dnn_hidden_units=spec.hidden, **common)
        common |= {"expert_dnn_hidden_units": spec.hidden, "gate_dnn_hidden_units": ()}
        if spec.model == "mmoe":
            return MMOE(features, num_experts=spec.experts, **common)
        experts = {"shared_expert_num": self.shared_experts, "specific_expert_num": spec.task_experts}
        return PLE(features, num_levels=1, **experts, **common)


if __name__ == "__main__":
    main(DeepCTR)
