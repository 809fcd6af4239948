"""The job in FuxiCTR: networks of its own blocks on its `MultiTaskModel`, trained by its `fit`.

The classes ShareBottom, MMoE, and PLE are in its repository's model_zoo, outside the wheel. The same networks are built
here from what the wheel has: `FeatureMap`, `FeatureEmbedding`, `MLP_Block`. There is no ESMM.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from fuxictr.features import FeatureMap  # type: ignore[import-not-found]
from fuxictr.pytorch.dataloaders.npz_dataloader import BatchCollator, NpzDataset  # type: ignore[import-not-found]
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block  # type: ignore[import-not-found]
from fuxictr.pytorch.models import MultiTaskModel  # type: ignore[import-not-found]
from torch import Tensor, nn

from benchmarks.peer_runners.measure import Array, Clock, main
from benchmarks.peer_runners.spec import Spec


class SharedBottom(nn.Module):
    """One block for all tasks."""

    def __init__(self, width: int, spec: Spec) -> None:
        super().__init__()
        self.block, self.num_tasks = _block(width, spec), len(spec.tasks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one hidden vector a task, [B, H] each."""
        return [self.block(x)] * self.num_tasks


class Mixture(nn.Module):
    """MMoE, or the one level of PLE: each task mixes the shared experts and its own."""

    def __init__(self, width: int, spec: Spec, *, shared: int, own: int) -> None:
        super().__init__()
        self.shared = nn.ModuleList(_block(width, spec) for _ in range(shared))
        self.own = nn.ModuleList(_block(width, spec) for _ in range(own * len(spec.tasks)))
        self.gates = nn.ModuleList(nn.Linear(width, shared + own, bias=False) for _ in spec.tasks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one hidden vector a task, [B, H] each."""
        shared, own = [expert(x) for expert in self.shared], [expert(x) for expert in self.own]
        mixed = []
        for k, gate in enumerate(self.gates):
            count = len(own) // len(self.gates)
            experts = torch.stack([*shared, *own[k * count : (k + 1) * count]], dim=1)  # [B, E, H]
            mixed.append((gate(x).softmax(dim=1).unsqueeze(1) @ experts).squeeze(1))
        return mixed


class Model(MultiTaskModel):  # type: ignore[misc]
    """Embeddings, what the tasks share, towers."""

    def __init__(self, features: Any, spec: Spec, clock: Clock, steps: int) -> None:  # noqa: ANN401
        super().__init__(
            features,
            model_id=spec.model,
            num_tasks=len(spec.tasks),
            task=["binary_classification"] * len(spec.tasks),
            eval_steps=steps,  # once, at the very end
            verbose=0,
            model_root=spec.folder,
            metrics=["AUC"],
        )
        self.clock = clock
        Path(self.model_dir).mkdir(parents=True, exist_ok=True)  # its fit saves there and makes no folder
        self.embedding = FeatureEmbedding(features, spec.dim, f"partial(nn.init.normal_, std={spec.init_std})")
        width = features.sum_emb_out_dim()
        if spec.model == "shared_bottom":
            self.middle: nn.Module = SharedBottom(width, spec)
        elif spec.model == "mmoe":
            self.middle = Mixture(width, spec, shared=spec.experts, own=0)
        elif spec.model == "ple":
            self.middle = Mixture(width, spec, shared=spec.shared_experts, own=spec.task_experts)
        else:
            raise ValueError(f"FuxiCTR has no {spec.model}; leave it out")
        self.towers = nn.ModuleList(
            MLP_Block(spec.hidden[-1], list(spec.tower), output_dim=1, batch_norm=True) for _ in spec.tasks
        )
        self.compile("adam", "binary_crossentropy", spec.lr)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the prediction of each task, [B, 1]."""
        hidden = self.middle(self.embedding(self.get_inputs(inputs), flatten_emb=True))
        labels = self.feature_map.labels
        return {
            f"{label}_pred": activation(tower(h))
            for label, activation, tower, h in zip(labels, self.output_activation, self.towers, hidden, strict=True)
        }

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Evaluate as the base class does, booked as evaluation: `fit` calls this at its end."""
        with self.clock.phase("evaluate"):
            self.found = super().evaluate(*args, **kwargs)
        return self.found


class Rows(NpzDataset):  # type: ignore[misc]
    """Its dataset of one matrix in memory, filled from Parquet."""

    def load_data(self, data_path: str) -> Array:
        """Return all columns side by side, in the order that its collator expects."""
        names = [*self.feature_map.features, *self.feature_map.labels]
        table = pq.read_table(data_path, columns=names, use_threads=False)
        return np.column_stack([table.column(name).to_numpy() for name in names])


class FuxiCTR:
    """See `benchmarks.peer_runners.measure.Contender`."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.notes = [
            "network built from its blocks (its model_zoo is not in the wheel)",
            "its npz loader given arrays read by pyarrow (its Parquet loader needs a Ray cluster)",
            "each dense column passes a linear map to one value; gradients clipped at norm 10 (its fit always does)",
        ]

    def run(self, clock: Clock) -> Mapping[str, float]:
        """See `Contender.run`."""
        spec, features = self.spec, self._feature_map()
        with clock.phase("read"):
            train = _loader(Rows(features, spec.train), features, spec.batch_size, shuffle=True)
            self.held_out = _loader(Rows(features, spec.test), features, spec.eval_batch_size, shuffle=False)
        with clock.phase("build"):
            self.model = Model(features, spec, clock, spec.epochs * len(train))
        with clock.phase("train"):
            self.model.fit(train, epochs=spec.epochs, validation_data=self.held_out)
        return {task: float(self.model.found[f"{task}_AUC"]) for task in spec.tasks}

    def predict(self) -> Array:
        """See `Contender.predict`."""
        found = self.model.predict(self.held_out)
        return np.stack([found[task] for task in self.spec.tasks], axis=1)

    def num_parameters(self) -> int:
        """See `Contender.num_parameters`."""
        return sum(p.numel() for p in self.model.parameters())

    def _feature_map(self) -> Any:  # noqa: ANN401
        features = FeatureMap("peers", self.spec.folder)
        for name, rows in self.spec.sparse.items():
            features.features[name] = {"source": "", "type": "categorical", "vocab_size": rows}
        for name in self.spec.dense:
            features.features[name] = {"source": "", "type": "numeric", "embedding_dim": 1}
        features.labels = list(self.spec.tasks)
        features.default_emb_dim = self.spec.dim
        features.num_fields = features.get_num_fields()
        features.set_column_index()
        return features


def _block(width: int, spec: Spec) -> nn.Module:
    block: nn.Module = MLP_Block(width, list(spec.hidden), batch_norm=True)
    return block


def _loader(rows: Rows, features: Any, batch_size: int, *, shuffle: bool) -> Any:  # noqa: ANN401
    return torch.utils.data.DataLoader(rows, batch_size, shuffle=shuffle, collate_fn=BatchCollator(features))


if __name__ == "__main__":
    main(FuxiCTR)
