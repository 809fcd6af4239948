"""The promise that a model can be exported: its programs say what it says, for any number of rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.model import MultiTaskModel, build_model
from torchrec_mtl.serving.columns import input_columns
from torchrec_mtl.serving.export import example_inputs
from torchrec_mtl.serving.inputs import InputMaker
from torchrec_mtl.serving.layout import Layout, lay_out
from torchrec_mtl.serving.parity import Trainer
from torchrec_mtl.serving.program import Program, export_program
from torchrec_mtl.serving.trusted import load_program

# Shapes: B rows, O outputs.

_SIZES = (1, 2, 7, 40)
_TOLERANCE = 1e-5
_LONGEST = 4


def check_export(config: RunConfig, prepare: Callable[[MultiTaskModel], None] | None = None) -> None:
    """Check that a model can be exported; call it in a test of your own head or bottom.

    Its programs are traced with four rows, written, read as a bundle's are, and given other numbers of rows, of rows of
    their own and of one user with candidates, with empty histories and without ids: they say what the model says.

    Args:
        config: names the head and the bottom; its data need not be there.
        prepare: changes the model before that, such as by what training would do.

    Raises:
        AssertionError: says what a program says otherwise.
        Exception: what torch raises at a forward that it cannot trace: branches or Python numbers of values.

    Example:
        >>> from torchrec_mtl.config.load import parse
        >>> from torchrec_mtl.data.synthetic import make_config
        >>> check_export(parse(make_config("unused.parquet", run_dir="unused")))
    """
    model = build_model(config, {}, tables="cpu").eval()
    _randomise(model)
    if prepare is not None:
        prepare(model)
    encoder = Encoder(config.data, config.features, config.tasks, labels=False)
    layout = lay_out(config.features, model.objective.reader.spec)
    tables = tables_of(model, layout)
    for one_user in (False, True):
        program = Program(model.objective, layout, "one_user" if one_user else "rows")
        inputs = (*example_inputs(layout, len(config.features.dense), one_user=one_user), tables)
        make, said = InputMaker(layout, one_user=one_user), []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program.pt2"
            torch.export.save(export_program(program, inputs), path)
            exported = load_program(path).module()
        for size in _SIZES:
            table = random_table(config.features, size, seed=size, one_user=one_user)
            rows = encoder.encode(table, "random rows")
            said.append(exported(*make(rows, rows.slice(0, 1)), tables))
            wanted = torch.from_numpy(Trainer(model, encoder).predict(table, program.outputs))
            _compare(said[-1], wanted, program, size)
        if not bool((said[-1].std(0) > 0).any()):
            raise AssertionError(f"the program '{program.kind}' says the same of all rows: it does not read its inputs")


def _compare(found: Tensor, wanted: Tensor, program: Program, size: int) -> None:
    worst = ((found - wanted).abs() / wanted.abs().clamp_min(1)).amax(0)
    for name, value in zip(program.outputs, worst.tolist(), strict=True):
        if not value <= _TOLERANCE:
            raise AssertionError(
                f"the program '{program.kind}' differs from the model by {value:.1e} in '{name}' for {size} rows: a "
                "forward that looks at the values, or at the number of rows, is traced for those it was traced with"
            )


def tables_of(model: MultiTaskModel, layout: Layout) -> list[Tensor]:
    """Return the tables of an unsharded model as a bundle lays them out, in fp32."""
    weights = {name.split(".")[-2]: p.detach() for name, p in model.embeddings.named_parameters()}
    made = [torch.zeros(f.rows, f.dim) for f in layout.files]
    for stored in layout.tables:
        made[stored.file][stored.first : stored.first + stored.rows] = weights[stored.table]
    return made


def random_table(features: FeaturesConfig, num_rows: int, *, seed: int, one_user: bool = False) -> pa.Table:
    """Return rows with the columns of features, some without ids or with empty histories.

    Args:
        features: the columns that are read.
        num_rows: B.
        seed: of the values.
        one_user: all rows have the same in the columns of the user's side.
    """
    rng = np.random.default_rng(seed)
    columns = {}
    for column in input_columns(features):
        same = one_user and "user" in column.sides
        count = 1 if same else num_rows
        lengths = (np.arange(count) + seed) % (_LONGEST + 1)  # the same of a sequence and of its times
        values = _values(column.kind, column.rows or 1000, lengths, rng)
        columns[column.name] = values * num_rows if same else values
    return pa.table(columns)


def _values(kind: str, rows: int, lengths: npt.NDArray[np.int64], rng: np.random.Generator) -> list[Any]:
    count = len(lengths)
    if kind == "number":
        return list(rng.normal(size=count))
    if kind == "id":
        return [int(i) if there else None for i, there in zip(rng.integers(rows, size=count), rng.random(count) < 0.8)]
    if kind == "moment":
        return [3600] * count
    return [rng.integers(rows, size=n).tolist() for n in lengths]


def _randomise(model: MultiTaskModel) -> None:
    """Leave no parameter at zero, and no running variance at one."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g).to(parameter.dtype))
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 1.5, generator=g)
