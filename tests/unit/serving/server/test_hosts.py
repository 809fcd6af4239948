"""Requests that name another host than the server's are a web page's that made its name lead here."""

import pytest


@pytest.mark.parametrize(
    "host", ["localhost:8000", "LOCALHOST", "127.0.0.1:80", "127.9.9.9", "[::1]:8000", "Gate.way:1"]
)
def test_this_machine_and_what_is_allowed_is_answered(start, host):
    assert start(hosts=("gate.way",)).client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "[::2]", "", "10.0.0.1"]
)
def test_any_other_is_refused_whatever_it_asks(start, host):
    server = start(hosts=("gate.way",), allow_reload=True)
    for method, path in (("GET", "/health"), ("POST", "/score"), ("POST", "/reload"), ("GET", "/docs")):
        answer = server.client.request(method, path, json={}, headers={"Host": host})
        assert answer.status_code == 400
        assert "--allowed-host" in answer.json()["error"]
    assert server.serving.monitor.reloads.labels("loaded")._value.get() == 0


def test_where_any_name_may_be_right_all_are_answered(start):
    assert start().client.get("/health", headers={"Host": "gate.way"}).status_code == 200
