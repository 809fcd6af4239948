"""Every head, and every bottom, as an exported program: what it says is what the trainer's model says, for any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.serving_runs import NUM_ROWS, config_of, eager, layout_of, model_of, tables_of
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.heads.ncs4cvr import NCS4CVR
from torchrec_mtl.model import MultiTaskModel
from torchrec_mtl.registry import BUILT_IN
from torchrec_mtl.serving.inputs import InputMaker
from torchrec_mtl.serving.program import Program, export_program

BINARY_ONLY = {"esmm", "escm2", "aitm", "dbmtl", "dmmp"}
BOTTOMS: dict[str, dict[str, Any]] = {name: {"type": name} for name in BUILT_IN["bottom"]}
BOTTOMS["epnet"]["domain"] = ["user_id"]
COMBINATIONS = [(head, "concat") for head in BUILT_IN["head"]]
COMBINATIONS += [("shared_bottom", bottom) for bottom in BOTTOMS if bottom != "concat"]
COMBINATIONS += [("ncs4cvr", "dtrn"), ("single_task", "din")]
SIZES = (1, 2, 7, NUM_ROWS)


def prune(model: MultiTaskModel) -> None:
    """Give each task of NCS4CVR a mask of its own."""
    head = model.objective.head
    if isinstance(head, NCS4CVR):
        g = torch.Generator().manual_seed(1)
        for k in range(head.num_tasks):
            head.rounds.begin((k,), 1, torch.rand(head.layers.num_connections, generator=g) < 0.2)
            head.rounds.used[k] = 1


@pytest.mark.parametrize(("head", "bottom"), COMBINATIONS, ids=["-".join(c) for c in COMBINATIONS])
def test_a_program_says_what_the_model_says(head: str, bottom: str) -> None:
    config = config_of({"type": head}, BOTTOMS[bottom], binary=head in BINARY_ONLY)
    model = model_of(config)
    prune(model)
    encoder, layout = Encoder(config.data, config.features, config.tasks, labels=False), layout_of(model, config)
    tables, table = tables_of(model, layout), make_table(NUM_ROWS, seed=1)
    user = {f.source for f in (*config.features.sparse, *config.features.sequences) if f.side == "user"}
    for one_user in (False, True):
        program = Program(model.objective, layout, "one_user" if one_user else "rows")
        make = InputMaker(layout, one_user=one_user)
        rows = encoder.encode(table, "table")
        exported = export_program(program, (*make(rows.slice(0, 4), rows.slice(0, 1)), tables)).module()
        said = []
        for size in SIZES:
            part = table.slice(5, size) if size < NUM_ROWS else table
            if one_user:
                part = pa.table({n: part[n].take([0] * size) if n in user else part[n] for n in part.column_names})
            rows = encoder.encode(part, "part")
            found = exported(*make(rows, rows.slice(0, 1)), tables)
            said.append(found)
            torch.testing.assert_close(found, eager(model, encoder, part, program.outputs), rtol=1e-5, atol=1e-5)
        assert float(said[-1].std(0).min()) > 1e-4, "it reads its inputs"
        assert all(np.isfinite(part.numpy()).all() for part in said)
