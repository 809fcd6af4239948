"""What is told of gates does not depend on how the rows lie on the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchrec_mtl.collectives import rank
from torchrec_mtl.findings import Finding, MatrixFinding, TableFinding
from torchrec_mtl.heads.watched import WatchedGate
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.gate_use import GateUse

pytestmark = pytest.mark.distributed

TASKS = ("click", "buy")
# Two batches of 10 rows; of the first ranks have 3 and 5 rows of data, of the second 2 and none. Users lie on both.
BATCHES = 2
USERS = torch.tensor([7, 7, 8, 0, 0, 7, 8, 9, 8, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0])
DATA = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]).float()
FIRST = torch.linspace(0.0, 1.0, 20)
WEIGHTS = torch.stack([FIRST, 1 - FIRST], dim=1)


def findings(world_size: int, broken_on: int | None = None) -> tuple[Finding, ...]:
    """Runs in a rank."""
    gate = WatchedGate("preference", nn.Identity(), ("all users",), TASKS, task_rows=0, by_user=True)
    use = GateUse([gate], TASKS)

    def outputs() -> Iterator[StepOutput]:
        for batch in range(BATCHES):
            mine = torch.arange(20).view(BATCHES, world_size, -1)[batch, rank()]
            gate.module(WEIGHTS[mine] * (0.5 if rank() == broken_on else 1.0))
            yield step_output(DATA[mine].unsqueeze(1).expand(-1, 2), USERS[mine])

    with torch.no_grad(), use.watching(outputs()) as watched:
        list(watched)
    return use.findings("test", "user_id")


def step_output(weights: Tensor, users: Tensor) -> StepOutput:
    nothing = torch.zeros(0)
    return StepOutput(
        names=TASKS,
        losses=nothing,
        loss_sums=nothing,
        weight_sums=nothing,
        predictions=nothing,
        further={},
        labels=nothing,
        weights=weights,
        ids={"group": users},
        stop=False,
    )


def test_a_gate_by_user_is_the_same_over_two_ranks_with_other_numbers_of_rows() -> None:
    (one,) = run_ranks(findings, 1, 1)
    two, other = run_ranks(findings, 2, 2)
    assert len(other) == 1  # what is told by users is on rank 0
    mean, by_rows, spread = one
    assert isinstance(mean, MatrixFinding)
    assert mean.values[0] == pytest.approx(WEIGHTS[DATA.bool()].mean(0).tolist())
    assert isinstance(by_rows, MatrixFinding)
    assert by_rows.rows == ("3 rows", "4 rows")  # of two users, and of one
    for found, expected in zip(two, one, strict=True):
        assert (found.title, found.columns, found.note) == (expected.title, expected.columns, expected.note)
        if isinstance(found, MatrixFinding) and isinstance(expected, MatrixFinding):
            assert found.rows == expected.rows
            assert np.array(found.values) == pytest.approx(np.array(expected.values), rel=1e-12)
        else:
            assert found == expected
    assert isinstance(spread, TableFinding)


def test_a_gate_that_is_wrong_on_one_rank_is_left_out_on_all() -> None:
    for broken_on, said in ((0, "weights that sum to 0.5 instead of 1"), (1, "on another rank")):
        (line,), _ = run_ranks(findings, 2, 2, broken_on)
        assert isinstance(line, TableFinding)
        assert said in str(line.rows[0][0])
