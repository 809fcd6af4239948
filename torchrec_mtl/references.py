"""The two reference rows printed beside a trained model: what a constant and what a linear model reach.

A network that does not beat the linear row has learnt nothing that its towers were needed for. Plain arrays in, plain
arrays out: nothing here knows of configs, batches, or torch.
"""

# mypy: disable-error-code="import-untyped,no-untyped-call"
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit, logit

Kind = Literal["binary", "regression"]
Vector = NDArray[np.float64]

L2_GRID: Final = (1000.0, 100.0, 10.0, 1.0, 0.1)  # strongest first: each fit starts from the one before
_DEFAULT_L2: Final = 10.0
_HELD_OUT_FRACTION: Final = 0.1
_MIN_ROWS_TO_CHOOSE: Final = 50
_MAX_ITERATIONS: Final = 300
_MAX_ITERATIONS_TO_CHOOSE: Final = 50
_CLIP: Final = 1e-7
_MIN_CURVATURE: Final = 1e-4


@dataclass(frozen=True)
class DesignData:
    """What the references are fitted to, or asked about. N rows, D dense and V sparse columns, K tasks.

    Attributes:
        dense: [N, D], normalised (the penalty weighs all columns alike).
        sparse: [N, V] in CSR; one-hot features, and lists with rows divided by their length.
        labels: [N, K]; may be nan where the weight is 0.
        weights: [N, K], each row's weight in each task; 0 means outside its space.
    """

    dense: NDArray[np.float32]
    sparse: sparse.csr_array
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Refuses parts that do not go together."""
        num_rows = {name: getattr(self, name).shape[0] for name in ("dense", "sparse", "labels", "weights")}
        if len(set(num_rows.values())) > 1:
            raise ValueError(f"all parts must have the same rows: found {num_rows}, take them from one table")
        if self.labels.shape != self.weights.shape:
            raise ValueError(
                f"labels and weights must both be [rows, tasks]: found {self.labels.shape} and {self.weights.shape}"
            )


@dataclass(frozen=True)
class References:
    """Predictions of the two reference models for the test rows, K tasks side by side.

    Attributes:
        constant: [N_test, K].
        linear: [N_test, K].
    """

    constant: Vector
    linear: Vector

    def rows(self) -> dict[str, Vector]:
        """Returns the predictions by the names that reports print: `constant` and `linear`."""
        return {"constant": self.constant, "linear": self.linear}


def fit_references(train: DesignData, test: DesignData, kinds: Sequence[Kind]) -> References:
    """Fits both references to the train rows and predicts the test rows, whatever the test rows' weights.

    Args:
        train: The rows to fit, in the order of time where there is one.
        test: The rows to predict; its labels and weights are not read.
        kinds: [K], the kind of each task.

    Returns:
        Predictions on the labels' scale: probabilities for binary tasks.

    Example:
        >>> dense = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
        >>> none, ones = sparse.csr_array((100, 0)), np.ones((100, 1), dtype=np.float32)
        >>> train = DesignData(dense, none, labels=3 * dense + 1, weights=ones)
        >>> references = fit_references(train, train, kinds=["regression"])
        >>> references.constant[0].round(3), references.linear[[0, -1], 0].round(1)
        (array([1.]), array([-2.,  4.]))
    """
    return References(
        constant=constant_reference(train, num_rows=test.dense.shape[0]), linear=linear_reference(train, test, kinds)
    )


def constant_reference(train: DesignData, *, num_rows: int) -> Vector:
    """Predicts each task's weighted mean label.

    Args:
        train: The rows to fit.
        num_rows: How many rows to predict.

    Returns:
        [num_rows, K].
    """
    means = [np.average(y, weights=w) for _, y, w in (_task_rows(train, k) for k in range(train.labels.shape[1]))]
    return np.tile(np.array(means), (num_rows, 1))


def linear_reference(train: DesignData, test: DesignData, kinds: Sequence[Kind]) -> Vector:
    """Predicts with a logistic regression for each binary task and a ridge regression for each other.

    Minimises `sum of weight * loss + l2 / 2 * |coefficients|^2`, the intercept free, with the log loss or half the
    squared error. `l2` counts in rows: a feature seen in fewer rows than that is mostly ignored. It is chosen by
    going down `L2_GRID` while the loss on the last tenth of the task's rows falls, then all rows are fitted; a task of
    fewer than 50 rows takes 10.

    Args:
        train: The rows to fit, in the order of time where there is one.
        test: The rows to predict.
        kinds: [K], the kind of each task.

    Returns:
        [N_test, K], probabilities for binary tasks. A regression is not clipped: it may go below 0.
    """
    _check_tasks(train, test, kinds)
    columns, test_columns = _columns(train), _columns(test)
    predictions = np.empty((test.dense.shape[0], len(kinds)))
    for k, kind in enumerate(kinds):
        rows, y, w = _task_rows(train, k)
        if kind == "binary" and not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"task {k} is binary but its labels are not: found {y.min():g} to {y.max():g}, pass 0 or 1"
            )
        problem = _Problem(columns[rows], y, w, kind)
        scores = test_columns @ _fit_with_chosen_l2(problem)
        predictions[:, k] = expit(scores) if kind == "binary" else scores
    return predictions


@dataclass(frozen=True)
class _Problem:
    """One task's rows; the last column is the intercept's."""

    columns: sparse.csr_array  # [N, P]
    labels: Vector
    weights: Vector
    kind: Kind

    def take(self, rows: slice) -> "_Problem":
        return _Problem(self.columns[rows], self.labels[rows], self.weights[rows], self.kind)

    def loss(self, coefficients: Vector) -> tuple[float, Vector]:
        """Sums the weighted losses, and their gradients."""
        row_loss = _logistic if self.kind == "binary" else _squared
        losses, slopes = row_loss(self.columns @ coefficients, self.labels)
        return float(self.weights @ losses), self.columns.T @ (self.weights * slopes)

    def constant_fit(self) -> Vector:
        coefficients = np.zeros(self.columns.shape[1])
        mean = np.average(self.labels, weights=self.weights)
        coefficients[-1] = logit(np.clip(mean, _CLIP, 1 - _CLIP)) if self.kind == "binary" else mean
        return coefficients

    def curvatures(self) -> Vector:
        """The diagonal of the Hessian at the constant fit."""
        squares = self.columns.copy()
        squares.data **= 2
        mean = np.average(self.labels, weights=self.weights)
        row_curvature = max(mean * (1 - mean), _MIN_CURVATURE) if self.kind == "binary" else 1.0
        return np.asarray(squares.T @ self.weights * row_curvature)


def _logistic(scores: Vector, labels: Vector) -> tuple[Vector, Vector]:
    """Each row's log loss, and its derivative by the score."""
    return np.logaddexp(0, scores) - labels * scores, expit(scores) - labels


def _squared(scores: Vector, labels: Vector) -> tuple[Vector, Vector]:
    """Each row's half squared error, and its derivative by the score."""
    residuals = scores - labels
    return residuals**2 / 2, residuals


def _fit_with_chosen_l2(problem: _Problem) -> Vector:
    num_rows = problem.labels.size
    if num_rows < _MIN_ROWS_TO_CHOOSE:
        return _fit(problem, _DEFAULT_L2, start=problem.constant_fit(), max_iterations=_MAX_ITERATIONS)
    num_fitted = num_rows - int(num_rows * _HELD_OUT_FRACTION)
    fitted, held_out = problem.take(slice(num_fitted)), problem.take(slice(num_fitted, num_rows))
    coefficients, best_loss, best_l2 = fitted.constant_fit(), np.inf, L2_GRID[0]
    start = coefficients
    for l2 in L2_GRID:
        coefficients = _fit(fitted, l2, start=coefficients, max_iterations=_MAX_ITERATIONS_TO_CHOOSE)
        loss, _ = held_out.loss(coefficients)
        if loss >= best_loss:
            break
        start, best_loss, best_l2 = coefficients, loss, l2
    return _fit(problem, best_l2, start=start, max_iterations=_MAX_ITERATIONS)


def _fit(problem: _Problem, l2: float, *, start: Vector, max_iterations: int) -> Vector:
    """Minimises the penalised loss by L-BFGS in coordinates of equal curvature, whatever the scale of the labels.

    A feature of 3 rows and one of 30,000 differ as much in curvature; unscaled, the iterations would go to the latter.
    """
    penalties = np.full(start.size, l2)
    penalties[-1] = 0.0
    unit = problem.loss(problem.constant_fit())[0]
    if unit == 0:
        return problem.constant_fit()
    steps = np.sqrt(unit / (problem.curvatures() + penalties))

    def objective(scaled: Vector) -> tuple[float, Vector]:
        value, gradient = _penalised(problem, penalties, scaled * steps)
        return value / unit, gradient * steps / unit

    options = {"maxiter": max_iterations, "ftol": 1e-12, "gtol": 1e-6}
    found = minimize(objective, start / steps, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x * steps)


def _penalised(problem: _Problem, penalties: Vector, coefficients: Vector) -> tuple[float, Vector]:
    loss, gradient = problem.loss(coefficients)
    return loss + float(penalties @ coefficients**2) / 2, gradient + penalties * coefficients


def _columns(data: DesignData) -> sparse.csr_array:
    """All columns side by side, and one of ones for the intercept. float64: mixed types would copy at each product."""
    num_rows = data.dense.shape[0]
    parts = [sparse.csr_array(data.dense), sparse.csr_array(data.sparse), sparse.csr_array(np.ones((num_rows, 1)))]
    return sparse.csr_array(sparse.hstack(parts, format="csr", dtype=np.float64))


def _task_rows(data: DesignData, k: int) -> tuple[NDArray[np.intp], Vector, Vector]:
    """The rows in the task's space, their labels, their weights."""
    if (data.weights[:, k] < 0).any():
        raise ValueError(f"weights must not be negative: found {data.weights[:, k].min():g} in task {k}, use 0 to mask")
    rows = np.flatnonzero(data.weights[:, k])
    y, w = data.labels[rows, k].astype(np.float64), data.weights[rows, k].astype(np.float64)
    if not rows.size:
        raise ValueError(f"task {k} has nothing to fit: found weight 0 in all train rows, check the task's space")
    if not np.isfinite(y).all():
        raise ValueError(f"labels must be finite: found nan or inf in task {k} where its weight is not 0, mask them")
    return rows, y, w


def _check_tasks(train: DesignData, test: DesignData, kinds: Sequence[Kind]) -> None:
    if len(kinds) != train.labels.shape[1]:
        raise ValueError(
            f"each task needs its kind: found {len(kinds)} kinds for {train.labels.shape[1]} label columns"
        )
    unknown = sorted(set(kinds) - {"binary", "regression"})
    if unknown:
        raise ValueError(f"unknown task kind: found {unknown[0]!r}, expected 'binary' or 'regression'")
    for name in ("dense", "sparse"):
        widths = getattr(train, name).shape[1], getattr(test, name).shape[1]
        if widths[0] != widths[1]:
            raise ValueError(f"train and test must have the same {name} columns: found {widths[0]} and {widths[1]}")
