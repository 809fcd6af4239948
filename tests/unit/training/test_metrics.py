"""Every metric against a few independent lines, its invariances, its masks, and its degenerate inputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from torchrec_mtl.training import metrics
from torchrec_mtl.training.bootstrap import bootstrap_interval
from torchrec_mtl.training.metrics import (
    auc,
    binary_metrics,
    ece,
    gauc,
    gini,
    regression_metrics,
    task_metrics,
)

pytestmark = pytest.mark.filterwarnings("error")

Vector = NDArray[np.float64]

# Scores on a coarse grid, so that ties are the rule and monotone maps keep distinct scores distinct.
rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=40)


def columns(drawn: list[tuple[int, int, int]]) -> tuple[Vector, Vector, NDArray[np.int64]]:
    labels, scores, groups = np.array(drawn).T
    return labels.astype(np.float64), scores / 8.0, groups


def pairwise_auc(labels: Vector, predictions: Vector) -> float:
    wins = np.sign(predictions[labels == 1][:, None] - predictions[labels == 0][None, :])
    return float((wins.mean() + 1) / 2) if wins.size else np.nan


def looped_gauc(labels: Vector, predictions: Vector, groups: NDArray[np.int64]) -> float:
    total = weight = 0.0
    for group in set(groups.tolist()):
        rows = groups == group
        value = pairwise_auc(labels[rows], predictions[rows])
        if not np.isnan(value):
            total, weight = total + rows.sum() * value, weight + rows.sum()
    return total / weight if weight else np.nan


def sorted_gini(labels: Vector, predictions: Vector) -> float:
    """The definition by sorting, trapezoidal, for predictions without ties."""

    def area(order: NDArray[np.int64]) -> float:
        share = np.append(0, np.cumsum(labels[order]) / labels.sum())
        return float((share[1:] + share[:-1]).mean() - 1)

    return area(np.argsort(-predictions)) / area(np.argsort(-labels))


@pytest.fixture
def binary() -> tuple[Vector, Vector, NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    predictions = generator.random(500).round(2)
    labels = (generator.random(500) < predictions).astype(np.float64)
    return labels, predictions, generator.integers(0, 40, 500)


@pytest.fixture
def regression() -> tuple[Vector, Vector]:
    generator = np.random.default_rng(1)
    labels = generator.gamma(1.0, 20.0, 300)
    return labels, labels * 0.5 + generator.normal(0, 15, 300)


@given(rows)
def test_auc_equals_all_pairs(drawn: list[tuple[int, int, int]]) -> None:
    labels, predictions, _ = columns(drawn)
    np.testing.assert_allclose(auc(labels, predictions), pairwise_auc(labels, predictions), atol=1e-12)


def test_auc_equals_torchmetrics(binary: tuple[Vector, Vector, NDArray[np.int64]]) -> None:
    labels, predictions, _ = binary
    expected = binary_auroc(torch.from_numpy(predictions), torch.from_numpy(labels).long())
    assert auc(labels, predictions) == pytest.approx(expected.item(), abs=1e-6)


@given(rows)
def test_auc_is_invariant_under_monotone_maps_and_antisymmetric(drawn: list[tuple[int, int, int]]) -> None:
    labels, predictions, _ = columns(drawn)
    value = auc(labels, predictions)
    np.testing.assert_allclose(auc(labels, np.exp(3 * predictions) - 7), value, atol=1e-12)
    np.testing.assert_allclose(auc(labels, -predictions), 1 - value, atol=1e-12)
    np.testing.assert_allclose(auc(1 - labels, predictions), 1 - value, atol=1e-12)


@given(rows)
def test_gauc_equals_a_loop_over_groups(drawn: list[tuple[int, int, int]]) -> None:
    labels, predictions, groups = columns(drawn)
    expected = looped_gauc(labels, predictions, groups)
    np.testing.assert_allclose(gauc(labels, predictions, groups), expected, atol=1e-12)


@given(rows, st.integers(0, 2**32 - 1))
def test_metrics_do_not_depend_on_row_order(drawn: list[tuple[int, int, int]], seed: int) -> None:
    labels, predictions, groups = columns(drawn)
    order = np.random.default_rng(seed).permutation(labels.size)
    before = binary_metrics(labels, predictions, groups=groups) | regression_metrics(groups, predictions)
    after = binary_metrics(labels[order], predictions[order], groups=groups[order])
    after |= regression_metrics(groups[order], predictions[order])
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-12, err_msg=name)


def test_gauc_is_invariant_under_monotone_maps_within_a_group() -> None:
    labels, groups = np.array([0, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 1])
    predictions = np.array([0.1, 0.4, 0.2, 0.8, 0.3])
    shifted = predictions + 10 * groups
    assert gauc(labels, predictions, groups) == gauc(labels, shifted, groups) == pytest.approx((3 * 1 + 2 * 0) / 5)


def test_gauc_takes_string_groups(binary: tuple[Vector, Vector, NDArray[np.int64]]) -> None:
    labels, predictions, groups = binary
    names = np.array([f"user{group}" for group in groups])
    assert gauc(labels, predictions, names) == pytest.approx(gauc(labels, predictions, groups), abs=1e-12)


def test_logloss_and_ne_by_hand() -> None:
    values = binary_metrics([1, 0, 0, 0], [0.5, 0.25, 0.5, 0.0])
    logloss = -(np.log(0.5) + np.log(0.75) + np.log(0.5) + np.log(1 - 1e-7)) / 4
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert values["logloss"] == pytest.approx(logloss, rel=1e-12)
    assert values["ne"] == pytest.approx(logloss / entropy, rel=1e-12)
    assert values["calibration"] == 1.25


def test_predicting_the_base_rate_has_ne_one() -> None:
    labels = np.array([1, 0, 0, 0, 1])
    assert binary_metrics(labels, np.full(5, 0.4))["ne"] == pytest.approx(1, rel=1e-12)


def test_certain_and_wrong_predictions_are_clipped() -> None:
    assert binary_metrics([1, 0], [0.0, 1.0])["logloss"] == pytest.approx(-np.log(1e-7), rel=1e-9)


def test_ece_equals_torchmetrics(binary: tuple[Vector, Vector, NDArray[np.int64]]) -> None:
    labels, predictions, _ = binary
    shifted = np.clip(predictions**2 + 0.003, 0, 1)
    expected = binary_calibration_error(torch.from_numpy(shifted), torch.from_numpy(labels).long(), n_bins=15)
    assert ece(labels, shifted) == pytest.approx(expected.item(), abs=1e-6)


def test_ece_of_certain_predictions_is_their_error_rate() -> None:
    assert ece([0, 1, 1, 1], [0.0, 1.0, 1.0, 0.0]) == 0.25


def test_regression_errors_by_hand() -> None:
    values = regression_metrics([0, 2, 4, 6], [1, 2, 2, 9])
    assert values["rmse"] == pytest.approx(np.sqrt(14 / 4))
    assert values["mae"] == 1.5
    assert values["nrmse"] == pytest.approx(np.sqrt(14 / 4) / np.sqrt(5))
    assert values["nmae"] == 0.5
    assert values["calibration"] == pytest.approx(14 / 12)


def test_predicting_the_mean_has_nrmse_one(regression: tuple[Vector, Vector]) -> None:
    labels, _ = regression
    assert regression_metrics(labels, np.full(labels.size, labels.mean()))["nrmse"] == pytest.approx(1)


def test_spearman_by_hand_with_a_tie() -> None:
    # Ranks 1 2 3 4 against 1 2.5 2.5 4: covariance 4.5, variances 5 and 4.5.
    assert regression_metrics([1, 2, 3, 4], [0, 5, 5, 7])["spearman"] == pytest.approx(4.5 / np.sqrt(5 * 4.5))


def test_spearman_equals_scipys_with_ties() -> None:
    labels, predictions = np.random.default_rng(0).integers(0, 9, size=(2, 200)).astype(float)
    expected = scipy.stats.spearmanr(labels, predictions).statistic
    assert regression_metrics(labels, predictions)["spearman"] == pytest.approx(expected, abs=1e-12)


def test_gini_equals_the_definition_by_sorting(regression: tuple[Vector, Vector]) -> None:
    labels, predictions = regression
    assert gini(labels, predictions) == pytest.approx(sorted_gini(labels, predictions), abs=1e-12)


def test_gini_is_one_for_the_order_of_labels_zero_for_constants_and_minus_one_reversed() -> None:
    labels = np.array([0, 0, 1, 5, 5, 30.0])
    assert gini(labels, labels**3 + 1) == pytest.approx(1, abs=1e-12)
    assert gini(labels, np.full(6, 3.0)) == pytest.approx(0, abs=1e-12)
    assert gini(labels, -labels) == pytest.approx(-1, abs=1e-12)


def test_gini_of_ties_is_the_mean_over_their_orders(regression: tuple[Vector, Vector]) -> None:
    labels, predictions = regression
    tied = predictions.round(-1)
    generator = np.random.default_rng(2)
    orders = [sorted_gini(labels, tied + generator.uniform(0, 1e-6, tied.size)) for _ in range(2000)]
    standard_error = np.std(orders) / np.sqrt(len(orders))
    assert gini(labels, tied) == pytest.approx(np.mean(orders), abs=4 * standard_error)


def test_gini_of_a_binary_label_is_two_auc_minus_one(binary: tuple[Vector, Vector, NDArray[np.int64]]) -> None:
    labels, predictions, _ = binary
    assert gini(labels, predictions) == pytest.approx(2 * auc(labels, predictions) - 1, abs=1e-12)


@given(rows, st.lists(st.integers(0, 1), min_size=40, max_size=40))
def test_masked_rows_count_for_nothing(drawn: list[tuple[int, int, int]], mask: list[int]) -> None:
    labels, predictions, groups = columns(drawn)
    weights = np.array(mask[: labels.size])
    kept = weights != 0
    expected = binary_metrics(labels[kept], predictions[kept], groups=groups[kept]) | {"count": kept.sum()}
    masked = np.where(kept, labels, np.nan)
    np.testing.assert_equal(task_metrics("binary", masked, predictions, weights, groups), expected)
    expected = regression_metrics(labels[kept], predictions[kept]) | {"count": kept.sum()}
    np.testing.assert_equal(task_metrics("regression", masked, predictions, weights), expected)


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0]])
def test_degenerate_columns_give_nan_without_warnings(values: list[float]) -> None:
    predictions = [0.5] * len(values)
    found = binary_metrics(values, predictions, groups=values)
    assert np.isnan([found["auc"], found["ne"], found["gauc"]]).all()
    assert np.isnan(found["logloss"]) == (not values)
    found = regression_metrics(values, predictions)
    assert np.isnan([found["nrmse"], found["spearman"], found["gini"]]).all()
    assert np.isnan(found["rmse"]) == (not values)


@pytest.mark.parametrize("size", [2, 3])
def test_two_and_three_rows_give_no_warnings(size: int) -> None:
    labels = np.arange(size) + 1.0
    assert regression_metrics(labels, labels)["spearman"] == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_give_nan(bad: float) -> None:
    found = binary_metrics([0, 1, 1], [0.5, bad, 0.1], groups=[0, 0, 0]) | regression_metrics([0, 1, 1], [0.5, bad, 0])
    assert np.isnan(list(found.values())).all()
    assert np.isnan([auc([0, 1], [bad, 0]), gini([0, 1], [bad, 0]), ece([0, 1], [bad, 0])]).all()


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 2], [0.1, 0.2], "must be 0 or 1: found 2"),
        ([0, np.nan], [0.1, 0.2], "must be 0 or 1: found nan"),
        ([0, 1], [-3.0, 0.2], "must be probabilities: found -3"),
        ([0, 1], [0.1, 0.2, 0.3], "found shapes"),
        ([[0], [1]], [[0.1], [0.2]], "must be one column"),
    ],
)
def test_wrong_binary_columns_are_refused(labels: list[float], predictions: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binary_metrics(labels, predictions)


def test_nan_regression_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be finite: found 1 nan"):
        regression_metrics([1, np.nan], [1, 2])


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task kind: found 'ordinal'"):
        task_metrics("ordinal", [1], [1], [1])  # type: ignore[arg-type]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_bootstrap_is_reproducible_and_surrounds_the_estimate(seed: int) -> None:
    generator = np.random.default_rng(5)
    predictions = generator.random(400)
    labels = (generator.random(400) < predictions).astype(np.float64)
    low, high = bootstrap_interval(auc, labels, predictions, resamples=100, seed=seed)
    assert (low, high) == bootstrap_interval(auc, labels, predictions, resamples=100, seed=seed)
    assert low < auc(labels, predictions) < high


def test_bootstrap_of_a_mean_has_the_normal_width() -> None:
    labels = np.random.default_rng(0).normal(size=900)
    low, high = bootstrap_interval(lambda y, _: float(y.mean()), labels, labels, resamples=4000, level=0.9)
    assert high - low == pytest.approx(2 * 1.645 * labels.std() / 30, rel=0.06)


def test_bootstrap_leaves_undefined_resamples_out() -> None:
    low, high = bootstrap_interval(auc, [1, 0, 0, 0, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.4, 0.5], resamples=50)
    assert low == high == 1
    assert np.isnan(bootstrap_interval(auc, [1, 1], [0.5, 0.5], resamples=5)).all()
    assert np.isnan(bootstrap_interval(auc, [], [])).all()


@pytest.mark.parametrize(("setting", "message"), [({"resamples": 0}, "resamples=0"), ({"level": 95}, "level=95")])
def test_bootstrap_refuses_settings_without_effect(setting: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(auc, [0, 1], [0, 1], **setting)


def test_the_module_does_not_import_torch() -> None:
    script = f"import runpy, sys; runpy.run_path({str(Path(metrics.__file__))!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
