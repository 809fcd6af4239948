"""What a server answers: the predictor's scores, the index's items, and never a 5xx for what a client got wrong."""

import dataclasses

import numpy as np
import pytest

from tests.retrieval_runs import NUM_ITEMS
from torchrec_mtl.retrieval.unseen import search_unseen

USER = {"user_id": 3, "watched": [1, 2, 3]}
CANDIDATES = {"item_id": [5, 6, 7], "tags": [["tag1"], ["tag2", "tag3"], []], "hour": [1, 2.5, None]}


def rows_of(columns):
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def test_scores_are_those_of_the_predictor_in_either_form(start, model):
    expected = model.predictor.score(USER, CANDIDATES)
    server = start()
    for given in (CANDIDATES, rows_of(CANDIDATES)):
        answer = server.post("/score", {"user": USER, "candidates": given})
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == list(model.predictor.outputs)
        for name, values in answer.json().items():
            assert np.float32(values).tolist() == expected[name].tolist()  # every digit comes through
    assert server.metric("torchrec_mtl_rows_scored_total") == 6


def test_the_context_is_that_of_all_candidates(start):
    server = start()
    items = {name: CANDIDATES[name] for name in ("item_id", "tags")}
    apart = server.post("/score", {"user": USER, "candidates": items, "context": {"hour": 4, "age": 30}})
    along = server.post("/score", {"user": USER, "candidates": {**items, "hour": [4] * 3, "age": [30] * 3}})
    assert apart.status_code == 200
    assert apart.json() == along.json()


def test_numbers_of_any_size_that_the_page_promises_are_taken(start):
    columns = {"item_id": [1, 2], "hour": [2**53 + 1, 0.5], "duration": [2**63 + 5, 1]}
    answer = start().post("/score", {"user": {}, "candidates": columns})
    assert answer.status_code == 200, answer.text


def test_what_is_left_out_has_its_default(start):
    server = start()
    answers = [server.post("/score", {"user": user, "candidates": [{}]}) for user in ({}, {"user_id": None})]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


def test_a_search_finds_what_the_index_finds(start, model):
    server = start()
    for weights, seen in (({}, []), ({"long_view": 3.0}, [4, 5, 6, 10**15, -1])):
        answer = server.post("/retrieve", {"user": USER, "k": 9, "weights": weights, "seen": seen})
        assert answer.status_code == 200, answer.text
        vectors = model.predictor.query_vectors({name: [value] for name, value in USER.items()})
        ids, scores = search_unseen(model.index, vectors, NUM_ITEMS, weights, None)
        left = [(i, s) for i, s in zip(ids.to_pylist(), scores[0].tolist()) if i not in seen][:9]
        assert answer.json() == {"ids": [i for i, _ in left], "scores": pytest.approx([s for _, s in left])}
    assert server.metric("torchrec_mtl_items_found_total") == 18


def test_a_search_of_more_than_there_is_finds_all_that_is_left(start):
    answer = start().post("/retrieve", {"user": {}, "k": 1000, "seen": list(range(10))}).json()
    assert sorted(answer["ids"]) == list(range(10, NUM_ITEMS))
    assert answer["scores"] == sorted(answer["scores"], reverse=True)


@pytest.mark.parametrize(
    ("path", "document", "at"),
    [
        ("/score", {"user": {"user_id": 100}, "candidates": [{}]}, "user.user_id"),
        ("/score", {"user": {"watched": [60]}, "candidates": [{}]}, "user.watched"),
        ("/score", {"user": {"watched": ["a"]}, "candidates": [{}]}, "user.watched"),
        ("/score", {"user": {}, "candidates": {"item_id": ["a", 1]}}, "candidates.item_id[0]"),
        ("/retrieve", {"user": {"watched": [60]}}, "user.watched"),
        ("/retrieve", {"user": {}, "seen": ["a"]}, "seen[0]"),
        ("/retrieve", {"user": {}, "seen": [None]}, "seen[0]"),
    ],
)
def test_what_only_the_model_can_tell_is_told_with_its_place(start, path, document, at):
    answer = start().post(path, document)
    assert answer.status_code == 422
    assert [problem["at"] for problem in answer.json()["problems"]] == [at]


def test_predictions_that_are_not_finite_are_no_answer(start, model):
    class FarOut:
        tasks, outputs, about = model.predictor.tasks, model.predictor.outputs, model.predictor.about

        def score(self, user, candidates):
            return {"click": np.float32([0.5]), "long_view": np.float32([np.inf])}

    answer = start(its_model=dataclasses.replace(model, predictor=FarOut())).post(
        "/score", {"user": {}, "candidates": [{}]}
    )
    assert answer.status_code == 422
    assert "no finite prediction of long_view" in answer.text


def test_the_schema_says_what_is_read_and_what_is_allowed(start):
    found = start(max_k=7).client.get("/schema").json()
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["user_id"] == {
        "name": "user_id",
        "kind": "id",
        "sides": ["user"],
        "default": "no id",
        "elements": "integers",
        "rows": 100,
    }
    assert columns["age"]["default"] == "the mean of the training data"
    assert found["tasks"] == ["click", "long_view"]
    assert found["outputs"][:2] == found["tasks"]
    assert found["index"] == {"items": NUM_ITEMS, "kind": "flat", "ids": "int64"}
    assert found["limits"]["max_k"] == 7
    assert found["bundle"]["head"] == "dmmp"


def test_without_an_index_there_is_no_search(start, model):
    answer = start(its_model=dataclasses.replace(model, index=None)).post("/retrieve", {"user": {}})
    assert answer.status_code == 404
    assert "start the server with --index" in answer.json()["error"]


def test_the_examples_of_the_page_work(start):
    server = start()
    described = server.client.get("/openapi.json").json()["paths"]
    for path in ("/score", "/retrieve"):
        examples = described[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for example in examples.values():
            assert server.post(path, example["value"]).status_code == 200


def test_the_page_needs_no_other_site(start):
    server = start()
    page = server.client.get("/docs").text
    assert "://" not in page.replace("http://www.w3.org", "")
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert name in page
        assert server.client.get(f"/static-offline-docs/{name}").status_code == 200


def test_unknown_paths_and_methods_answer_in_the_same_form(start):
    server = start()
    for answer, status in ((server.client.get("/nothing"), 404), (server.client.get("/score"), 405)):
        assert answer.status_code == status
        assert set(answer.json()) == {"error", "problems"}
    assert server.metric('torchrec_mtl_requests_total{path="other",status="404"}') == 1
