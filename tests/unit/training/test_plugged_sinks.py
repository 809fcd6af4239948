"""A sink that fails, hangs, or is slow never takes training along, and never goes without a word."""

from __future__ import annotations

import threading

import pytest

from tests.sinks import Failing, Impossible, Keeping
from torchrec_mtl.training import plugged_sinks
from torchrec_mtl.training.plugged_sinks import GuardedSink, PluggedSink


def plugged(kind, said, **options):
    return PluggedSink("mine", lambda: kind(None, 0), said.append, **options)


def test_numbers_reach_it_in_order_and_all_before_it_is_closed():
    said = []
    sink = plugged(Keeping, said)
    for step in range(100):
        sink.write(step, {"a": step / 2})
    sink.close()
    kept = Keeping.made[-1]
    assert kept.lines == [(step, {"a": step / 2}) for step in range(100)]
    assert (kept.closed, said) == (1, [])
    assert kept.threads == {"sink mine"}  # made and written to in one thread, as trackers want it


def test_what_is_written_may_change_afterwards():
    sink, values = plugged(Keeping, []), {"a": 1.0}
    sink.write(1, values)
    values["a"] = 2.0
    sink.close()
    assert Keeping.made[-1].lines == [(1, {"a": 1.0})]


def test_one_that_fails_is_switched_off_with_one_line():
    said = []
    sink = plugged(Failing, said)
    for step in (10, 20, 30):
        sink.write(step, {"a": 1.0})
    sink._thread.join()
    sink.write(40, {"a": 1.0})
    sink.close()
    assert [step for step, _ in Keeping.made[-1].lines] == [10, 20]
    assert Keeping.made[-1].closed == 1
    (line,) = said
    assert line.startswith("sink mine failed at step 20: ConnectionError: the server has gone [away] (sinks.py, line ")
    assert line.endswith("it gets no more numbers, training goes on, metrics.jsonl has all numbers")


def test_one_that_fails_at_its_last_line_is_told_at_the_end():
    said = []
    sink = plugged(Failing, said)
    sink.write(1, {})
    sink.write(2, {})
    sink.close()
    assert len(said) == 1


def test_one_that_cannot_be_made_is_an_error_at_once():
    with pytest.raises(ValueError, match=r"^train\.sinks: mine cannot be opened: PermissionError: wrong password"):
        plugged(Impossible, [])


def hanging(monkeypatch, gate):
    class Hanging(Keeping):
        def write(self, step, values):
            gate.wait()

    return Hanging


def test_one_that_hangs_is_left_at_the_end(monkeypatch):
    gate, said = threading.Event(), []
    sink = plugged(hanging(monkeypatch, gate), said, close_s=0.05)
    sink.write(1, {})
    sink.close()
    gate.set()
    assert said == [
        "sink mine is not done 0.05 s after the end, and is left: its last numbers may be missing; metrics.jsonl has "
        "all numbers"
    ]


def test_one_that_does_not_keep_up_gets_no_more(monkeypatch):
    monkeypatch.setattr(plugged_sinks, "_MOST_WAITING", 3)
    gate, said = threading.Event(), []
    sink = plugged(hanging(monkeypatch, gate), said, close_s=0.05)
    for step in range(10):
        sink.write(step, {})
    assert len(said) == 1
    assert said[0].startswith("sink mine did not take its numbers (3 lines wait) and gets no more")
    gate.set()
    sink.close()
    assert len(said) == 1


def test_a_guarded_sink_is_switched_off_with_one_line():
    said = []
    kept = Failing(None, 0)
    sink = GuardedSink("TensorBoard", kept, said.append)
    for step in (1, 2, 3):
        sink.write(step, {})
    sink.close()
    assert [step for step, _ in kept.lines] == [1, 2]
    assert kept.closed == 1
    assert len(said) == 1
    assert said[0].startswith("sink TensorBoard failed at step 2: ConnectionError")
