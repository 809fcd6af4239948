"""What a server does not take on: large bodies, other types, too many at once, too long."""

import dataclasses
import threading
import time

import pytest

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
