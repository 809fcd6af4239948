import gc
import itertools
import threading
import time

import pytest

from torchrec_mtl.data.prefetch import DataTimeoutError, prefetch
from torchrec_mtl.whereabouts import whereabouts


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


def test_items_come_in_order_and_the_thread_ends():
    assert list(prefetch(iter(range(100)), depth=3)) == list(range(100))
    assert threads() == []


def test_reads_ahead_by_depth_and_no_more():
    made = []
    items = prefetch((made.append(i) or i for i in itertools.count()), depth=3)
    assert next(items) == 0
    wait_for(lambda: len(made) == 5)  # one taken, three waiting, one held until there is room
    time.sleep(0.02)
    assert len(made) == 5
    items.close()


def test_exception_comes_after_the_items_before_it():
    def broken():
        yield 1
        yield 2
        raise ValueError("row group 7")

    items = prefetch(broken(), depth=8)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="row group 7") as error:
        next(items)
    assert error.traceback[-1].name == "broken"
    assert threads() == []


def test_a_wait_that_is_too_long_names_the_file():
    answers = threading.Event()

    def silent():
        yield 1
        whereabouts.reads("s3://bucket/part-7.parquet, row group 3")
        answers.wait()

    items = prefetch(silent(), depth=2, timeout_s=0.3)
    assert next(items) == 1
    threading.Timer(0.6, answers.set).start()  # the thread is left to itself, and may end
    with pytest.raises(DataTimeoutError, match=r"within 0\.3 s.*part-7\.parquet, row group 3\. .*train\.timeout_s"):
        next(items)
    answers.set()


@pytest.mark.parametrize("stop", ["close", "collect", "throw"])
def test_thread_ends_when_the_consumer_stops_early(stop):
    closed = threading.Event()

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = prefetch(endless(), depth=2)
    next(items)
    if stop == "close":
        items.close()
    elif stop == "throw":
        with pytest.raises(KeyboardInterrupt):
            items.throw(KeyboardInterrupt)
    else:
        del items
        gc.collect()
    assert closed.wait(5)
    wait_for(lambda: threads() == [])


def test_slow_item_is_waited_for():
    def slow():
        time.sleep(0.05)
        yield 1

    assert list(prefetch(slow(), depth=1)) == [1]


def test_unused_generator_starts_no_thread():
    prefetch(iter([1]), depth=1)
    assert threads() == []
