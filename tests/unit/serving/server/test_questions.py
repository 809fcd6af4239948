"""Bodies of requests, read: what is taken, and what each mistake is told."""

import json
from functools import partial

import pytest

from torchrec_mtl.serving.server.bodies import parse
from torchrec_mtl.serving.server.columns import ServedColumn
from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.problems import RequestError
from torchrec_mtl.serving.server.questions import Reader


def column(name, kind, side, rows=None, elements=None):
    return ServedColumn(name, kind, (side,), "none", elements, rows)


COLUMNS = (
    column("user_id", "id", "user", 100),
    column("age", "number", "user"),
    column("watched", "sequence", "user", 50),
    column("times", "times", "user"),
    column("now", "moment", "user"),
    column("item_id", "id", "item", 50),
    column("price", "number", "item"),
    column("hour", "number", "context"),
    column("tags", "id", "item", elements="strings"),
    column("brand", "id", "item", elements="integers"),
)
READER = Reader(COLUMNS, ("click", "buy"), Limits(max_candidates=4, max_k=9, max_seen=2))
USER = {"user_id": 3}
TWO = {"item_id": [1, 2]}


def problems_of(read, document):
    with pytest.raises(RequestError) as error:
        read(document)
    assert error.value.status == 422
    return [(problem.at, problem.message) for problem in error.value.problems]


def test_rows_and_columns_are_the_same_question():
    rows = [{"item_id": 1, "price": 0.5}, {"item_id": 2, "price": None}]
    columns = {"item_id": [1, 2], "price": [0.5, None]}
    asked = [READER.score({"user": USER, "candidates": given, "context": {"hour": 7}}) for given in (rows, columns)]
    assert asked[0] == asked[1]
    assert asked[0].candidates == {**columns, "hour": [7, 7]}
    assert asked[0].rows == 2


def test_a_column_that_a_row_lacks_is_null_there():
    found = READER.score({"user": {}, "candidates": [{"item_id": 1}, {"price": 2, "item_id": 3}, {}]})
    assert found.candidates == {"item_id": [1, 3, None], "price": [None, 2, None]}


def test_candidates_without_any_value_are_counted():
    found = READER.score({"user": {}, "candidates": [{}, {}, {}]})
    assert found.candidates == {"item_id": [None] * 3}


def test_a_search_has_defaults():
    found = READER.retrieve({"user": USER})
    assert (found.k, found.weights, found.seen) == (9, {}, [])


@pytest.mark.parametrize(
    ("changed", "at", "message"),
    [
        ({"usr": {}}, "usr", "no such field. Did you mean 'user'?"),
        ({"user": None}, "user", "expected an object of columns, found null"),
        ({"user": {"user_ids": 1}}, "user.user_ids", "no such column. Did you mean 'user_id'?"),
        ({"user": {"item_id": 1}}, "user.item_id", "a column of the item; give it in candidates"),
        ({"user": {"user_id": 100}}, "user.user_id", "expected an id of 0 to 99, found an integer 100"),
        ({"user": {"user_id": -1}}, "user.user_id", "expected an id of 0 to 99, found an integer -1"),
        ({"user": {"user_id": 1.0}}, "user.user_id", "found a number 1.0"),
        ({"user": {"user_id": True}}, "user.user_id", "found a boolean True"),
        ({"user": {"user_id": [10**19]}}, "user.user_id", "expected an integer of 64 bits"),
        ({"user": {"age": "old"}}, "user.age", "expected a number, found a string 'old'"),
        ({"user": {"age": 1e39}}, "user.age", "expected a number of float32"),
        ({"user": {"watched": 3}}, "user.watched", "expected a list of integers or strings, found an integer 3"),
        ({"user": {"watched": [1, "a"]}}, "user.watched", "integers or strings, in all rows the same, found a string"),
        ({"user": {"watched": [[1]]}}, "user.watched", "found a list"),
        ({"user": {"times": ["a"]}}, "user.times", "expected a list of numbers, found a string 'a'"),
        ({"user": {"now": True}}, "user.now", "expected a number, found a boolean"),
        ({"candidates": None}, "candidates", "expected a list of objects, or an object of lists, found null"),
        ({"candidates": []}, "candidates", "expected 1 to 4 candidates, found none"),
        ({"candidates": {}}, "candidates", "expected 1 to 4 candidates, found none"),
        ({"candidates": [{}] * 5}, "candidates", "expected 1 to 4 candidates, found 5"),
        ({"candidates": [{}, 3]}, "candidates[1]", "expected an object of columns, found an integer"),
        ({"candidates": [{"item_id": 1}, {"item_id": "a"}]}, "candidates[1].item_id", "found a string 'a'"),
        ({"candidates": [{"item_id": 1}, {"item_id": [1]}]}, "candidates[0].item_id", "lists in all rows, or in none"),
        ({"candidates": [{"prize": 1}]}, "candidates.prize", "no such column. Did you mean 'price'?"),
        ({"candidates": {"item_id": 1}}, "candidates.item_id", "expected a list of values, found an integer"),
        (
            {"candidates": {"item_id": [1, 50]}},
            "candidates.item_id[1]",
            "expected an id of 0 to 49, found an integer 50",
        ),
        ({"candidates": {"item_id": [1], "price": [1, 2]}}, "candidates", "different lengths: item_id 1, price 2"),
        ({"candidates": {"price": [1, True]}}, "candidates.price[1]", "numbers, or booleans in all rows"),
        ({"candidates": {**TWO, "hour": [1, 2]}, "context": {"hour": 3}}, "context.hour", "given in candidates too"),
        ({"context": {"price": 3}}, "context.price", "a column of the item; give it in candidates"),
        (
            {"candidates": {"tags": [["a"], [1]]}},
            "candidates.tags[1]",
            "expected a string, or a list of strings, found an",
        ),
        ({"candidates": {"brand": ["a"]}}, "candidates.brand[0]", "expected an integer, or a list of integers"),
        ({"context": []}, "context", "expected an object of columns, found a list"),
    ],
)
def test_a_mistake_is_told_with_its_place(changed, at, message):
    found = problems_of(partial(READER.score, ranges=True), {"user": USER, "candidates": TWO, **changed})
    assert [place for place, _ in found] == [at]
    assert message in found[0][1]


@pytest.mark.parametrize(
    ("changed", "at", "message"),
    [
        ({"k": 0}, "k", "expected an integer of 1 to 9, found an integer 0"),
        ({"k": 10}, "k", "found an integer 10"),
        ({"k": True}, "k", "found a boolean True"),
        ({"k": None}, "k", "found null"),
        ({"weights": {"clickk": 1}}, "weights.clickk", "no such task. Did you mean 'click'?"),
        ({"weights": {"click": "1"}}, "weights.click", "expected a number of at most 1e6, found a string '1'"),
        ({"weights": {"click": 1e300}}, "weights.click", "expected a number of at most 1e6"),
        ({"weights": []}, "weights", "expected an object"),
        ({"seen": [1, 2, 3]}, "seen", "expected a list of at most 2 ids, found 3 of them"),
        ({"seen": {}}, "seen", "found an object"),
        ({"candidates": []}, "candidates", "no such field"),
    ],
)
def test_a_mistake_in_a_search_is_told_with_its_place(changed, at, message):
    found = problems_of(READER.retrieve, {"user": USER, **changed})
    assert [place for place, _ in found] == [at]
    assert message in found[0][1]


def test_a_mistake_among_many_weights_is_told():
    tasks = [f"task{i}" for i in range(30)]
    reader = Reader(COLUMNS, tasks, Limits())
    good = dict.fromkeys(tasks, 1.0)
    assert reader.retrieve({"user": {}, "weights": good}).weights == good
    ((at, said),) = problems_of(reader.retrieve, {"user": {}, "weights": {**good, "task29": "boom"}})
    assert (at, "found a string 'boom'" in said) == ("weights.task29", True)
    ((at, _),) = problems_of(reader.retrieve, {"user": {}, "weights": {**good, "task30": 1}})
    assert at == "weights.task30"
    assert len(problems_of(reader.retrieve, {"user": {}, "weights": dict.fromkeys(map(str, range(10**5)), 1)})) == 20


def test_numbers_are_of_the_one_type_that_arrow_takes():
    far, last = 2**63 + 5, 2**63 - 1
    user = {"age": far, "times": [far, 3, None], "now": 7}
    found = READER.score({"user": user, "candidates": {"price": [2**53 + 1, 0.5, None], "hour": [1, far, 2]}})
    assert [found.user["age"], *found.user["times"]] == [float(far), float(far), 3.0, None]
    assert type(found.user["now"]) is int
    assert found.candidates["price"] == [float(2**53 + 1), 0.5, None]
    assert set(map(type, found.candidates["hour"])) == {float}
    kept = READER.retrieve({"user": {"times": [last, -last], "now": last}}).user
    assert [*kept["times"], kept["now"]] == [last, -last, last]  # every digit
    mixed = READER.retrieve({"user": {"times": [2**53 + 1, 0.5]}}).user
    assert mixed["times"] == [float(2**53 + 1), 0.5]


def test_all_mistakes_are_told_at_once():
    found = problems_of(READER.score, {"user": {"user_id": "a", "age": "b", "x": 1}, "candidates": [{"price": "c"}]})
    assert {at for at, _ in found} == {"user.age", "user.x", "candidates[0].price"}


def test_what_is_missing_is_told():
    assert problems_of(READER.score, {}) == [("user", "missing"), ("candidates", "missing")]


def test_so_many_mistakes_are_cut_short():
    strange = {f"x{i}" * 40: i for i in range(5000)}
    found = problems_of(READER.score, {"user": strange, "candidates": [dict.fromkeys(strange)]})
    assert len(found) == 20
    assert all(len(at) < 100 for at, _ in found)


@pytest.mark.parametrize(
    ("body", "at", "message"),
    [
        (b"", "", "send a JSON object"),
        (b"{", "", "send a JSON object"),
        (b"\xff", "", "send a JSON object"),
        (b'"\\ud800"', "", "send a JSON object"),
        (b"[" * 100_000, "", "send a JSON object"),
        (b"[1]", "", "expected a JSON object, found a list"),
        (b"null", "", "found null"),
        (b'{"a": {"b": [1, NaN]}}', "a.b[1]", "nan is no JSON number"),
        (b'{"a": -Infinity}', "a", "-inf is no JSON number"),
        (b'{"a": 1e999}', "a", "inf is no JSON number"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body, at, message):
    ((place, said),) = problems_of(parse, body)
    assert place == at
    assert message in said


def test_integers_of_any_size_are_read_as_numbers():
    assert parse(json.dumps({"a": 10**30}).encode()) == {"a": 1e30}
