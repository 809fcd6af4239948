"""The reference rows against closed forms, planted coefficients, and finite differences."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import check_grad
from scipy.special import expit

from torchrec_mtl import references
from torchrec_mtl.references import (
    DesignData,
    Kind,
    References,
    constant_reference,
    fit_references,
    linear_reference,
)

Vector = NDArray[np.float64]
Column = NDArray[np.floating] | NDArray[np.bool_]


def design(
    labels: Column, *, dense: Column | None = None, ids: NDArray[np.int64] | None = None, weights: Column | None = None
) -> DesignData:
    labels = labels.reshape(len(labels), -1)
    num_rows = len(labels)
    one_hot = sparse.csr_array((num_rows, 0))
    if ids is not None:
        one_hot = sparse.csr_array((np.ones(num_rows), ids, np.arange(num_rows + 1)), shape=(num_rows, ids.max() + 1))
    return DesignData(
        dense=np.zeros((num_rows, 0), dtype=np.float32) if dense is None else dense.astype(np.float32),
        sparse=one_hot,
        labels=labels.astype(np.float32),
        weights=np.ones(labels.shape, dtype=np.float32) if weights is None else weights.astype(np.float32),
    )


def closed_form_ridge(columns: Vector, labels: Column, weights: Column, l2: float) -> Vector:
    columns = np.column_stack([columns, np.ones(len(columns))])
    penalty = l2 * np.diag(np.append(np.ones(columns.shape[1] - 1), 0.0))
    return np.asarray(np.linalg.solve(columns.T * weights @ columns + penalty, columns.T * weights @ labels))


def problem(kind: Kind, *, seed: int = 0, num_rows: int = 60) -> references._Problem:
    generator = np.random.default_rng(seed)
    columns = sparse.csr_array(np.column_stack([generator.normal(size=(num_rows, 4)), np.ones(num_rows)]))
    labels = generator.integers(0, 2, num_rows) if kind == "binary" else 3 * generator.normal(size=num_rows)
    return references._Problem(columns, labels.astype(np.float64), generator.uniform(0.5, 2, num_rows), kind)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_ridge_equals_the_closed_form(scale: float) -> None:
    # 49 rows: the strength is not chosen but the documented default.
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(49, 5)).astype(np.float32)
    labels = (scale * (dense @ generator.normal(size=5) + generator.normal(size=49) + 3)).astype(np.float32)
    weights = generator.uniform(0.5, 2, 49).astype(np.float32)
    expected = closed_form_ridge(dense.astype(np.float64), labels, weights, l2=10.0)
    train = design(labels, dense=dense, weights=weights[:, None])
    found = linear_reference(train, train, ["regression"])[:, 0]
    np.testing.assert_allclose(found, dense @ expected[:-1] + expected[-1], rtol=1e-4, atol=1e-5 * scale)


def test_rare_and_frequent_features_reach_the_closed_form_alike() -> None:
    generator = np.random.default_rng(1)
    ids = np.minimum(generator.pareto(0.5, 3000).astype(int), 39)
    labels = generator.normal(size=40)[ids] + 0.1 * generator.normal(size=3000)
    data = references._columns(design(labels, ids=ids))
    task = references._Problem(data, labels, np.ones(3000), "regression")
    found = references._fit(task, 1.0, start=task.constant_fit(), max_iterations=300)
    expected = closed_form_ridge(data.toarray()[:, :-1], labels, np.ones(3000), l2=1.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["binary", "regression"])
@given(seed=st.integers(0, 10_000))
def test_gradient_equals_finite_differences(kind: Kind, seed: int) -> None:
    task, penalties = problem(kind, seed=seed), np.array([3.0, 3.0, 3.0, 3.0, 0.0])
    at = np.random.default_rng(seed).normal(size=5)

    def part(index: int) -> object:
        return lambda coefficients: references._penalised(task, penalties, coefficients)[index]

    size = np.linalg.norm(references._penalised(task, penalties, at)[1])
    assert check_grad(part(0), part(1), at) < 1e-5 * (1 + size)


def test_logistic_fit_is_stationary() -> None:
    task = problem("binary")
    found = references._fit(task, 2.0, start=task.constant_fit(), max_iterations=300)
    _, gradient = references._penalised(task, np.array([2.0, 2.0, 2.0, 2.0, 0.0]), found)
    np.testing.assert_allclose(gradient, 0, atol=1e-3)


def test_planted_coefficients_are_recovered_in_both_kinds() -> None:
    generator = np.random.default_rng(2)
    num_rows, planted = 40_000, np.array([1.0, -0.5, 0.0])
    dense, ids = generator.normal(size=(num_rows, 3)), generator.integers(0, 20, num_rows)
    effects = generator.normal(size=20)
    scores = dense @ planted + effects[ids] - 0.7
    labels = np.column_stack([generator.random(num_rows) < expit(scores), scores + generator.normal(size=num_rows)])
    train = design(labels, dense=dense, ids=ids)
    probes = np.vstack([np.zeros(3), np.eye(3)])
    test = DesignData(probes.astype(np.float32), train.sparse[:4], train.labels[:4], train.weights[:4])

    found = linear_reference(train, test, ["binary", "regression"])
    log_odds = np.log(found[:, 0] / (1 - found[:, 0]))
    at_zero = scores[:4] - dense[:4] @ planted
    np.testing.assert_allclose(log_odds - at_zero, np.append(0, planted), atol=0.15)
    np.testing.assert_allclose(found[:, 1] - at_zero, np.append(0, planted), atol=0.08)


def test_rows_of_lists_count_by_their_mean() -> None:
    generator = np.random.default_rng(3)
    effects = generator.normal(size=10)
    lists = [generator.integers(0, 10, generator.integers(1, 6)) for _ in range(5000)]
    columns = sparse.csr_array(np.array([np.bincount(row, minlength=10) / len(row) for row in lists]))
    labels = (columns @ effects)[:, None].astype(np.float32)
    train = DesignData(np.zeros((5000, 0), dtype=np.float32), columns, labels, np.ones_like(labels))
    np.testing.assert_allclose(linear_reference(train, train, ["regression"]), labels, atol=0.02)


def test_constant_is_the_weighted_mean_of_the_task_space() -> None:
    labels = np.array([[1, 10], [0, 20], [1, np.nan]])
    weights = np.array([[1, 1], [1, 3], [2, 0]])
    found = constant_reference(design(labels, weights=weights), num_rows=2)
    np.testing.assert_allclose(found, [[0.75, 17.5], [0.75, 17.5]])


def test_masked_rows_are_ignored() -> None:
    generator = np.random.default_rng(4)
    dense, ids = generator.normal(size=(400, 2)), generator.integers(0, 5, 400)
    labels = np.column_stack([generator.integers(0, 2, 400), dense.sum(axis=1)]).astype(np.float64)
    kept = generator.random(400) < 0.5
    ids[-1] = 4
    train = design(np.where(kept[:, None], labels, np.nan), dense=dense, ids=ids, weights=np.column_stack([kept, kept]))
    filtered = DesignData(train.dense[kept], train.sparse[kept], train.labels[kept], train.weights[kept])
    found = fit_references(train, train, ["binary", "regression"])
    expected = fit_references(filtered, train, ["binary", "regression"])
    np.testing.assert_array_equal(found.constant, expected.constant)
    np.testing.assert_array_equal(found.linear, expected.linear)


def test_a_weight_of_two_equals_the_row_twice() -> None:
    generator = np.random.default_rng(5)
    dense, labels = generator.normal(size=(20, 2)), generator.integers(0, 2, 20).astype(np.float64)
    once = design(labels, dense=dense, weights=np.full((20, 1), 2.0))
    twice = design(np.tile(labels, 2), dense=np.tile(dense, (2, 1)))
    found, expected = linear_reference(once, once, ["binary"]), linear_reference(twice, once, ["binary"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_features_are_held_down_by_the_chosen_strength() -> None:
    generator = np.random.default_rng(6)
    ids, labels = generator.integers(0, 2000, 4000), generator.normal(size=4000) + 5
    data = design(labels, ids=ids)
    found = linear_reference(data, data, ["regression"])
    assert np.std(found) < 0.1


@pytest.mark.parametrize(("kind", "label"), [("binary", 0.0), ("binary", 1.0), ("regression", 0.1)])
@pytest.mark.parametrize("num_rows", [1, 30, 200])
@pytest.mark.filterwarnings("error")
def test_a_single_label_value_is_predicted(kind: Kind, label: float, num_rows: int) -> None:
    dense = np.random.default_rng(7).normal(size=(num_rows, 2))
    data = design(np.full(num_rows, label), dense=dense)
    np.testing.assert_allclose(linear_reference(data, data, [kind]), label, atol=1e-3)


def test_rows_go_by_the_names_that_reports_print() -> None:
    found = References(constant=np.zeros((1, 1)), linear=np.ones((1, 1)))
    assert found.rows() == {"constant": found.constant, "linear": found.linear}


def test_parts_of_unequal_length_are_refused() -> None:
    whole = design(np.ones(3))
    with pytest.raises(ValueError, match=r"same rows: found .*'dense': 2"):
        DesignData(whole.dense[:2], whole.sparse, whole.labels, whole.weights)
    with pytest.raises(ValueError, match=r"both be \[rows, tasks\]"):
        DesignData(whole.dense, whole.sparse, whole.labels, np.ones((3, 2), dtype=np.float32))


@pytest.mark.parametrize(
    ("labels", "weights", "kinds", "message"),
    [
        ([1.0, 0.0], [0.0, 0.0], ["binary"], "task 0 has nothing to fit"),
        ([1.0, 3.0], [1.0, 1.0], ["binary"], "task 0 is binary but its labels are not: found 1 to 3"),
        ([1.0, np.nan], [1.0, 1.0], ["regression"], "labels must be finite"),
        ([1.0, 0.0], [1.0, -1.0], ["regression"], "weights must not be negative: found -1"),
        ([1.0, 0.0], [1.0, 1.0], ["binary", "binary"], "found 2 kinds for 1 label columns"),
        ([1.0, 0.0], [1.0, 1.0], ["ordinal"], "unknown task kind: found 'ordinal'"),
    ],
)
def test_tasks_that_cannot_be_fitted_are_refused(
    labels: list[float], weights: list[float], kinds: list[Kind], message: str
) -> None:
    data = design(np.array(labels), weights=np.array(weights)[:, None])
    with pytest.raises(ValueError, match=message):
        linear_reference(data, data, kinds)


def test_train_and_test_of_other_columns_are_refused() -> None:
    train, test = design(np.ones(4), dense=np.ones((4, 2))), design(np.ones(4), dense=np.ones((4, 3)))
    with pytest.raises(ValueError, match="same dense columns: found 2 and 3"):
        linear_reference(train, test, ["regression"])


def test_three_tasks_on_a_wide_table_take_seconds() -> None:
    generator = np.random.default_rng(8)
    num_rows, num_fields, field_size = 50_000, 6, 5_000
    ids = generator.integers(0, field_size, (num_rows, num_fields)) + field_size * np.arange(num_fields)
    indptr = np.arange(0, num_rows * num_fields + 1, num_fields)
    columns = sparse.csr_array((np.ones(num_rows * num_fields), ids.ravel(), indptr), shape=(num_rows, 30_000))
    scores = columns @ generator.normal(0, 0.5, 30_000)
    labels = np.column_stack([scores > 0, scores > 1, scores]).astype(np.float32)
    data = DesignData(np.zeros((num_rows, 0), dtype=np.float32), columns, labels, np.ones_like(labels))
    start = time.perf_counter()
    fit_references(data, data, ["binary", "binary", "regression"])
    assert time.perf_counter() - start < 15
