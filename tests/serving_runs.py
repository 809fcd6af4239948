"""What tests of serving share: models as programs, and small trained runs with their bundles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tests.runs import BATCH, raw_config, train_ranks, write
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.synthetic import make_config, make_table
from torchrec_mtl.model import MultiTaskModel, build_model
from torchrec_mtl.serving.layout import Layout, lay_out

NUM_ROWS = 64


def config_of(head: Mapping[str, Any], bottom: Mapping[str, Any], *, binary: bool = False) -> RunConfig:
    """A config of the planted data; with ``binary`` without its regression."""
    raw = make_config("unused.parquet", run_dir="unused", space=False)
    raw["data"]["eval"] = raw["data"]["train"]
    raw |= {"head": dict(head), "bottom": dict(bottom), "gradient": {"type": "sum"}}
    raw["features"]["sparse"][0]["side"] = "user"
    if binary:
        raw["tasks"] = [task for task in raw["tasks"] if task["kind"] == "binary"]
    return parse(raw)


def model_of(config: RunConfig) -> MultiTaskModel:
    """A model in evaluation mode, no parameter of which is zero."""
    model = build_model(config, {}, tables="cpu").eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 1.5, generator=g)
    return model


def tables_of(model: MultiTaskModel, layout: Layout) -> list[Tensor]:
    """The tables as a bundle lays them out."""
    weights = {name.split(".")[-2]: p.detach() for name, p in model.embeddings.named_parameters()}
    made = [torch.zeros(f.rows, f.dim) for f in layout.files]
    for stored in layout.tables:
        made[stored.file][stored.first : stored.first + stored.rows] = weights[stored.table]
    return made


def layout_of(model: MultiTaskModel, config: RunConfig) -> Layout:
    """How the tables of a model are laid out."""
    return lay_out(config.features, model.objective.reader.spec)


def eager(model: MultiTaskModel, encoder: Encoder, table: pa.Table, names: tuple[str, ...]) -> Tensor:
    """What the trainer's model says of a table's rows, [B, O]."""
    rows = encoder.encode(table, "table")
    batch = encoder.batch(rows, slots=np.arange(len(rows)), step=0, global_size=len(rows))
    with torch.no_grad():
        _, output = model(batch)
    known = {**dict(zip(model.objective.tasks, output.predictions.unbind(1))), **output.further}
    return torch.stack([known[name] for name in names], dim=1)


def train_small(folder: Path, ranks: int = 1, **sections: Any) -> Path:
    """Train for an epoch of a few steps; return the run_dir. Its rows are ``rows.parquet`` beside it."""
    folder.mkdir(exist_ok=True)
    train = write(folder / "train.parquet", make_table(4 * BATCH, seed=1))
    write(folder / "rows.parquet", make_table(300, seed=2))
    raw = raw_config(train, folder / "run", **sections)
    raw["data"] |= {"test": str(folder / "rows.parquet")}
    raw["train"] = {"epochs": 1, **raw.get("train", {})}
    train_ranks(raw, ranks)
    return folder / "run"
