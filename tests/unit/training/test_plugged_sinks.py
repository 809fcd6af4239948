"""A sink that fails, hangs, or is slow never takes training along, and never goes without a word."""

from __future__ import annotations

import threading
from types import SimpleNamespace

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


def waiting(gate, where):
    """A sink that waits for the gate in its constructor, or in a method."""

    class Waiting(Keeping):
        def __init__(self, run, first_step):
            super().__init__(run, first_step)
            self._at("made")

        def write(self, step, values):
            self._at("write")
            super().write(step, values)

        def close(self):
            self._at("close")
            super().close()

        def _at(self, place):
            if place == where:
                gate.wait()

    return Waiting


def test_one_that_hangs_as_it_is_made_is_an_error_and_is_closed_should_it_come_after_all():
    gate = threading.Event()
    with pytest.raises(ValueError, match=r"^train\.sinks: mine cannot be opened: it was not done after 0\.05 s"):
        plugged(waiting(gate, "made"), [], open_s=0.05)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "sink mine"]
    gate.set()
    thread.join()
    assert Keeping.made[-1].closed == 1


def test_one_that_hangs_is_left_at_the_end():
    gate, said = threading.Event(), []
    sink = plugged(waiting(gate, "write"), said)
    sink.write(1, {})
    sink.close(0.05)
    gate.set()
    assert said == [
        "sink mine is not done in the time that sinks have at the end, and is left: its last numbers may be missing; "
        "metrics.jsonl has all numbers"
    ]


def test_one_that_does_not_keep_up_gets_no_more_and_is_closed_after_what_it_holds(monkeypatch):
    monkeypatch.setattr(plugged_sinks, "_MOST_WAITING", 3)
    gate, said = threading.Event(), []
    sink = plugged(waiting(gate, "write"), said)
    for step in range(10):
        sink.write(step, {})
    assert len(said) == 1
    assert said[0].startswith("sink mine did not take its numbers (3 lines wait) and gets no more")
    gate.set()
    sink.close()
    assert len(said) == 1
    kept = Keeping.made[-1]
    assert kept.closed == 1
    assert [step for step, _ in kept.lines] == list(range(len(kept.lines)))  # those that it held, none lost between


@pytest.mark.parametrize("where", ["write", "close"])
def test_several_that_hang_have_one_time_together(monkeypatch, where):
    gate, said, waits = threading.Event(), [], []
    sinks = [plugged(waiting(gate, where), said) for _ in range(3)]
    clock = iter([100.0, 100.0, 150.0, 170.0])  # the first is waited for 50 s, the second 20 s
    monkeypatch.setattr(plugged_sinks, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for sink in sinks:
        sink.write(1, {})
        monkeypatch.setattr(sink._thread, "join", waits.append)
    plugged_sinks.close_together(sinks, 60.0)
    assert waits == [60.0, 10.0, 0.0]
    assert len(said) == 3
    gate.set()


def test_the_first_error_is_told_where_closing_fails_too():
    class Worse(Failing):
        def close(self):
            raise RuntimeError("nor can it be closed")

    said = []
    sink = plugged(Worse, said)
    sink.write(1, {})
    sink.write(2, {})
    sink.close()
    (line,) = said
    assert "failed at step 2: ConnectionError: the server has gone [away]" in line


def test_a_failure_in_close_says_nothing_of_training():
    class Unclosed(Keeping):
        def close(self):
            raise RuntimeError("no more space")

    said = []
    plugged(Unclosed, said).close()
    GuardedSink("other", Unclosed(None, 0), said.append).close()
    assert len(said) == 2
    for line in said:
        assert "failed when it was closed: RuntimeError: no more space" in line
        assert line.endswith("; numbers may be missing there, metrics.jsonl has all numbers")


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
