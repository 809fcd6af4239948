"""What gates are said to do is what they did, over the rows that count."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.findings import MatrixFinding, TableFinding
from torchrec_mtl.heads.mmoe import MMoE
from torchrec_mtl.heads.watched import WatchedGate
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.testing import contracts
from torchrec_mtl.training.gate_groups import by_activity
from torchrec_mtl.training.gate_use import GateUse

TASKS = ("click", "buy")
NOTHING = torch.zeros(0)


def output(weights, users=None):
    return StepOutput(
        names=TASKS,
        losses=NOTHING,
        loss_sums=NOTHING,
        weight_sums=NOTHING,
        predictions=NOTHING,
        further={},
        labels=NOTHING,
        weights=torch.tensor(weights),
        ids={} if users is None else {"group": torch.tensor(users)},
        stop=False,
    )


def test_means_are_over_the_rows_that_count_for_the_task():
    torch.manual_seed(0)
    head = MMoE(6, TASKS, MMoE.Config(experts=3, expert=(4,), tower=())).eval()
    batches = [torch.randn(4, 6), torch.randn(4, 6)]
    weights = [[[1.0, 1.0], [0.5, 0.0], [1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0]] * 4]
    use = GateUse(head.watched_gates(), TASKS)

    def outputs():
        for x, w in zip(batches, weights, strict=True):
            head(Representation(x))
            yield output(w)

    with torch.no_grad(), use.watching(outputs()) as watched:
        assert len(list(watched)) == 2
    (found,) = use.findings("test", None)
    gates = torch.cat([torch.softmax(head.gates.linear(x), -1) for x in batches], dim=1)
    assert isinstance(found, MatrixFinding)
    assert (found.rows, found.columns) == (TASKS, ("expert 1", "expert 2", "expert 3"))
    expected = [gates[0, [0, 1, 2, 4, 5, 6, 7]].mean(0), gates[1, [0]].mean(0)]
    assert np.array(found.values) == pytest.approx(torch.stack(expected).detach().numpy(), rel=1e-6)
    assert not head.gates._forward_hooks


def test_hooks_are_gone_after_an_error():
    head = MMoE(6, TASKS, MMoE.Config(expert=(4,), tower=()))
    with pytest.raises(RuntimeError), GateUse(head.watched_gates(), TASKS).watching([]):
        raise RuntimeError
    assert not head.gates._forward_hooks


def test_a_task_without_rows_has_no_mean_and_a_gate_that_is_not_asked_tells_nothing():
    module = nn.Identity()
    gate = WatchedGate("gate", module, TASKS, ("a", "b"), softmax=True)
    idle = WatchedGate("idle", nn.Identity(), TASKS, ("a", "b"))
    use = GateUse([gate, idle], TASKS)

    def outputs():
        module(torch.zeros(2, 3, 2))
        yield output([[1.0, 0.0]] * 3)

    with use.watching(outputs()) as watched:
        list(watched)
    (found,) = use.findings("eval", None)
    assert found.values[0] == (0.5, 0.5)
    assert all(map(math.isnan, found.values[1]))


def test_a_gate_by_user_leaves_padding_out():
    module = nn.Identity()
    gate = WatchedGate("preference", module, ("all users",), TASKS, task_rows=0, by_user=True)
    use = GateUse([gate], TASKS)

    def outputs():
        module(torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1], [0.0, 1.0]]))
        yield output([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], users=[7, 7, 8, 9])

    with use.watching(outputs()) as watched:
        list(watched)
    mean, by_rows, spread = use.findings("test", "user_id")
    assert mean.values[0] == pytest.approx((0.5, 0.5))
    assert (by_rows.rows, [pytest.approx(v) for v in by_rows.values]) == (
        ("1 row", "2 rows"),
        [(0.9, 0.1), (0.3, 0.7)],
    )
    assert isinstance(spread, TableFinding)
    assert [row[:2] for row in spread.rows] == [("1 row", 1), ("2 rows", 1)]


def findings_of(gate, returned, weights, tasks=TASKS):
    use = GateUse([gate], tasks)

    def outputs():
        gate.module(returned)
        yield dataclasses.replace(output(weights), names=tasks)

    with use.watching(outputs()) as watched:
        list(watched)
    return use.findings("test", None)


def test_a_row_is_a_task_s_only_where_the_gate_says_so():
    weights = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).expand(2, 2, 2)
    gate = WatchedGate("gate", nn.Identity(), ("shared", "shared"), ("a", "b"), task_rows=1)
    (found,) = findings_of(gate, weights, [[1.0, 0.0], [0.0, 1.0]], tasks=("shared", "buy"))
    assert found.values == ((1.0, 0.0), (0.5, 0.5))


@pytest.mark.parametrize(
    ("task_rows", "said"),
    [
        (None, "count for the task;"),
        (0, "count for any task;"),
        (1, "count for the task, of 'buy' over those that count for any;"),
    ],
)
def test_the_note_says_which_rows_count(task_rows, said):
    gate = WatchedGate("gate", nn.Identity(), TASKS, ("a", "b"), task_rows=task_rows)
    (found,) = findings_of(gate, torch.full((2, 3, 2), 0.5), [[1.0, 1.0]] * 3)
    assert f"over the test rows that {said} a line adds up to 1." in found.note


def test_what_padding_weighs_may_be_anything():
    weights = torch.full((2, 3, 2), 0.5)
    weights[:, 2] = math.nan
    gate = WatchedGate("gate", nn.Identity(), TASKS, ("a", "b"))
    (found,) = findings_of(gate, weights, [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert found.values == ((0.5, 0.5), (0.5, 0.5))


@pytest.mark.parametrize(
    ("options", "returned", "said"),
    [
        ({}, torch.full((2, 3, 4), 0.25), r"returns the shape (2, 3, 4), where its rows and columns say (2, 3, 2)"),
        ({}, torch.full((3, 2), 0.5), "returns the shape (3, 2)"),
        ({}, torch.full((2, 3, 2), 0.0005), "weights that sum to 0.001 instead of 1; say softmax=True"),
        ({}, (torch.full((2, 3, 2), 0.5),), "returns tuple instead of a tensor"),
        ({"rows": ("click", "all")}, torch.full((2, 3, 2), 0.5), "says that its row 'all' is a task; set task_rows"),
        ({"by_user": True}, torch.full((2, 3, 2), 0.5), "is told by users, and has 2 rows instead of one"),
    ],
)
def test_a_gate_that_is_not_what_it_says_is_left_out_with_a_line(options, returned, said):
    gate = WatchedGate(**{"title": "gate", "module": nn.Identity(), "rows": TASKS, "columns": ("a", "b"), **options})
    (found,) = findings_of(gate, returned, [[1.0, 1.0]] * 3)
    assert isinstance(found, TableFinding)
    assert said in found.rows[0][0]


def test_groups_of_users_are_about_deciles_and_a_user_counts_once():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1_000), rng.integers(1, 60, 1_000))
    weights = np.stack([users / 1_000, 1 - users / 1_000], axis=1)
    heat, table = by_activity("gate", TASKS, users, weights, "user_id")
    assert isinstance(table, TableFinding)
    assert len(table.rows) == 10
    counts = [row[1] for row in table.rows]
    assert sum(counts) == 1_000
    assert min(counts) > 60
    means = np.array(heat.values)
    assert np.average(means[:, 0], weights=counts) == pytest.approx(np.arange(1_000).mean() / 1_000)
    assert all(row[2] <= row[3] <= row[4] for row in table.rows)


def test_there_are_no_groups_of_nobody():
    assert by_activity("gate", TASKS, np.zeros(0), np.zeros((0, 2)), "user_id") == ()


WATCHED = ("mmoe", "stem", "home", "adatt", "ple", "dmmp")


@pytest.mark.parametrize("name", BUILT_IN["head"])
def test_every_head_names_each_weight_of_its_gates_once(name, monkeypatch):
    """In the forward passes that the contract of heads is tested with."""
    head_class, seen = resolve("head", name), []
    forward = head_class.forward

    def watching(self, representation):
        use = GateUse(self.watched_gates(), tuple(self.outputs))
        outputs = iter([dataclasses.replace(output([[1.0] * self.num_tasks] * len(representation.shared)))])
        with torch.no_grad(), use.watching(outputs) as watched:
            found = forward(self, representation)
            list(watched)
        seen.append(use.findings("test", None))
        assert len(seen[-1]) == len([g for g in self.watched_gates() if len(g.columns) > 1])
        return forward(self, representation) if torch.is_grad_enabled() else found

    monkeypatch.setattr(head_class, "forward", watching)
    contracts.check_head(head_class)
    assert seen
    for findings in seen:
        assert bool(findings) == (name in WATCHED)
        for finding in findings:
            assert np.array(finding.values).shape == (len(finding.rows), len(finding.columns))
            assert np.array(finding.values).sum(1) == pytest.approx(1.0)
            assert len(set(finding.columns)) == len(finding.columns)
