"""Requests drawn from the OpenAPI page, right and wrong ones: no 5xx, and no answer that the page does not promise."""

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
BOUNDED = hypothesis.settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
POSTS, GETS = ("/score", "/retrieve", "/reload"), ("/schema", "/health", "/metrics")


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, mode) for path in POSTS for mode in GenerationMode] + [(p, GenerationMode.POSITIVE) for p in GETS],
)
def test_answers_are_those_that_the_page_promises(start, monkeypatch, path, mode):
    server = start(allow_reload=True, max_candidates=50)
    monkeypatch.setattr(server.serving, "_reload", lambda _: served(server))  # loading takes a second
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.client.app)
    operation = schema[path]["POST" if path in POSTS else "GET"]
    statuses = set()

    @BOUNDED
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)

    ask()
    assert statuses & ({200} if mode is GenerationMode.POSITIVE else {422, 415})


async def served(server):
    return server.serving.model
