"""What a server does not take on: large bodies, other types, too many at once, too long."""

import asyncio
import dataclasses
import json
import os
import threading
import time

import pytest

from torchrec_mtl.serving.server.limits import usable_cores
from torchrec_mtl.serving.server.questions import Reader

ASK = {"user": {}, "candidates": [{"item_id": 1}]}
JSON = {"Content-Type": "application/json"}


class Slow:
    """A predictor whose scores come when they are let go."""

    def __init__(self, predictor):
        self._predictor = predictor
        self.go, self.entered = threading.Event(), threading.Semaphore(0)

    def __getattr__(self, name):
        return getattr(self._predictor, name)

    def score(self, *args):
        self.entered.release()
        assert self.go.wait(30)
        return self._predictor.score(*args)


@pytest.fixture
def slow(start, model):
    """Start a server with a slow predictor."""
    made = []

    def make(**limits):
        predictor = Slow(model.predictor)
        made.append(predictor)
        reader = Reader(model.columns, model.predictor.tasks, model.reader._limits)
        server = start(its_model=dataclasses.replace(model, predictor=predictor, reader=reader), **limits)
        return server, predictor

    yield make
    for predictor in made:
        predictor.go.set()


def in_threads(server, count):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(server.post("/score", ASK))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return answers, threads


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large_is_refused(start, told):
    body = b" " * 101
    answer = start(max_body_bytes=100).client.post("/score", content=body if told else iter([body]), headers=JSON)
    assert answer.status_code == 413
    assert "101 bytes, and at most 100" in answer.text if told else "more than 100 bytes" in answer.text


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_page_of_another_site_cannot_make_a_browser_ask(start, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    for path in ("/score", "/retrieve", "/reload"):
        answer = start(allow_reload=True).client.post(path, content=b"{}", headers=headers)
        assert answer.status_code == 415
        assert "application/json" in answer.text


def test_beyond_what_may_wait_is_turned_away_at_once_and_the_rest_is_answered(slow):
    server, predictor = slow(workers=1, waiting=2)
    answers, threads = in_threads(server, 3)
    until(lambda: server.pool.inside == 3)
    assert server.metric("torchrec_mtl_requests_inside") == 3
    refused = server.post("/score", ASK)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    predictor.go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert server.pool.inside == 0
    assert server.post("/score", ASK).status_code == 200


async def asked(app, go):
    """Return the status of a request whose body comes when it is let go."""
    statuses = []

    async def receive():
        await go.wait()
        return {"type": "http.request", "body": json.dumps(ASK).encode(), "more_body": False}

    async def send(message):
        statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

    scope = {"type": "http", "method": "POST", "path": "/score", "query_string": b"", "http_version": "1.1"}
    await app({**scope, "headers": [(b"content-type", b"application/json")]}, receive, send)
    return statuses[0]


def test_who_sends_no_body_takes_nobodys_turn(start):
    server = start(workers=1, waiting=0)

    async def ask():
        go = asyncio.Event()
        silent = [asyncio.create_task(asked(server.client.app, go)) for _ in range(3)]
        while server.serving.monitor.reading._value.get() < 3:
            await asyncio.sleep(0.01)
        at_once = asyncio.Event()
        at_once.set()
        honest = await asked(server.client.app, at_once)
        go.set()
        return honest, {*await asyncio.gather(*silent)}

    honest, silent = asyncio.run(ask())
    assert honest == 200
    assert silent <= {200, 503}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        ({"proc/self/cgroup": "1:cpu:/x\n0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


def test_health_is_told_while_all_workers_are_busy(slow):
    server, predictor = slow(workers=1)
    _, threads = in_threads(server, 1)
    assert predictor.entered.acquire(timeout=20)
    assert server.client.get("/health").json()["status"] == "ready"
    assert server.client.get("/schema").status_code == 200
    predictor.go.set()
    threads[0].join()


def test_a_score_that_takes_too_long_is_given_up_and_its_place_is_kept_until_it_ends(slow):
    server, predictor = slow(workers=1, waiting=1, timeout_s=0.2)
    for _ in range(2):  # one that is worked on, and one that waits and never begins
        answer = server.post("/score", ASK)
        assert (answer.status_code, answer.json()["error"]) == (504, "scoring took longer than 0.2 s")
    until(lambda: server.pool.inside == 1)
    predictor.go.set()
    until(lambda: server.pool.inside == 0)
    assert predictor.entered.acquire(timeout=0)
    assert not predictor.entered.acquire(timeout=0)


def test_an_error_of_ours_is_500_and_says_nothing_of_the_inside(start, model):
    class Broken(Slow):
        def score(self, *args):
            raise RuntimeError("secret")

    server = start(its_model=dataclasses.replace(model, predictor=Broken(model.predictor)))
    answer = server.post("/score", ASK)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert server.metric('torchrec_mtl_requests_total{path="/score",status="500"}') == 1


def test_a_server_that_stops_says_so(start):
    server = start()
    assert server.client.get("/health").status_code == 200
    server.serving.stopping = True
    answer = server.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "stopping")
    assert server.post("/score", ASK).status_code == 200  # requests still end
