"""The check of heads refuses watched gates that are not what they say."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from torch import nn

from torchrec_mtl.heads.mmoe import MMoE
from torchrec_mtl.heads.ple import PLE
from torchrec_mtl.testing import check_head


class Renamed(MMoE):
    """Says something else of its gate."""

    changes: ClassVar[Mapping[str, Any]] = {}

    def watched_gates(self):
        return [dataclasses.replace(gate, **self.changes) for gate in super().watched_gates()]


class TooFewColumns(Renamed):
    changes: ClassVar = {"columns": ("expert 1", "expert 2")}


class UnknownTask(Renamed):
    changes: ClassVar = {"rows": ("click", "long_view", "everything")}


class OfLogits(Renamed):
    def watched_gates(self):
        return [dataclasses.replace(gate, module=gate.module.linear) for gate in super().watched_gates()]


class OfAModuleThatIsNotAsked(Renamed):
    changes: ClassVar = {"module": nn.Identity()}


class NoGate(Renamed):
    def watched_gates(self):
        return [self.gates]


BROKEN = {
    TooFewColumns: r"shape \(3, 8, 4\), where its rows and columns say \(3, 8, 2\)",
    UnknownTask: "'Use of experts', that says that its row 'everything' is a task",
    OfLogits: "say softmax=True where the module returns logits",
    OfAModuleThatIsNotAsked: "called 0 times a batch",
    NoGate: "watches Gates instead of a WatchedGate",
}


@pytest.mark.parametrize("head_class", BROKEN, ids=lambda c: c.__name__)
def test_a_gate_that_is_not_what_it_says_is_refused(head_class):
    with pytest.raises(AssertionError, match=BROKEN[head_class]):
        check_head(head_class, MMoE.Config(experts=4, expert=(4,), tower=()))


def test_a_task_may_be_called_like_a_row_of_another_kind():
    check_head(PLE, PLE.Config(tower=()), outputs=("shared", "buy"))
