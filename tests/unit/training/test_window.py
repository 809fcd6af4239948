import dataclasses

import numpy as np
import pytest
import torch

from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.losses.binary import BinaryCrossEntropy
from torchrec_mtl.losses.regression import MeanSquaredError
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.metrics import binary_metrics
from torchrec_mtl.training.window import WindowMetrics

TASKS = (
    TaskConfig(name="long-view", kind="binary", label="y", loss=BinaryCrossEntropy.Config()),
    TaskConfig(name="watch", kind="regression", label="w", loss=MeanSquaredError.Config()),
)


def output(seed, rows=64):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(rows, 2, generator=g) * 0.8 + 0.1
    labels = torch.stack([(torch.rand(rows, generator=g) < p[:, 0]).float(), p[:, 1] * 2], dim=1)
    weights = (torch.rand(rows, 2, generator=g) > 0.3).float()
    empty = torch.zeros(2)
    return StepOutput(("long-view", "watch"), empty, empty, empty, p, {}, labels, weights, {}, stop=False)


def test_the_window_is_the_exact_metric_of_its_rows_and_leaves_out_weight_0():
    with process_group("cpu"):
        window = WindowMetrics(TASKS, rows=10_000)
        outputs = [output(seed) for seed in range(6)]
        for i, held in enumerate(outputs):
            window.hold(held)
            values = window.compute() if i % 2 else {}
    p, y, w = (torch.cat([getattr(o, name) for o in outputs]).numpy() for name in ("predictions", "labels", "weights"))
    kept = w[:, 0] > 0
    expected = binary_metrics(y[kept, 0], p[kept, 0])
    assert values["long-view/ne"] == pytest.approx(expected["ne"], rel=1e-5)
    assert values["long-view/calibration"] == pytest.approx(expected["calibration"], rel=1e-5)
    kept = w[:, 1] > 0
    assert values["watch/rmse"] == pytest.approx(np.sqrt(np.mean((p[kept, 1] - y[kept, 1]) ** 2)), rel=1e-5)
    assert set(values) == {"long-view/ne", "long-view/calibration", "watch/rmse", "watch/calibration"}


def test_rows_before_the_window_are_forgotten():
    with process_group("cpu"):
        window = WindowMetrics(TASKS, rows=64)
        first = output(0)
        window.hold(dataclasses.replace(first, predictions=torch.full_like(first.predictions, 0.01)))
        window.compute()
        window.hold(output(1))
        after = window.compute()
        fresh = WindowMetrics(TASKS, rows=64)
        fresh.hold(output(1))
        assert after == pytest.approx(fresh.compute())


def test_rows_of_weight_0_may_hold_anything():
    held = output(0)
    outside = held.weights == 0
    broken = dataclasses.replace(held, labels=held.labels.masked_fill(outside, torch.nan))
    of_each = []
    for each in (held, broken):
        window = WindowMetrics(TASKS, rows=64)
        window.hold(each)
        of_each.append(window.compute())
    assert of_each[0] == of_each[1]


def test_a_metric_that_its_rows_do_not_define_is_nan():
    held = output(0)
    window = WindowMetrics(TASKS, rows=64)
    window.hold(dataclasses.replace(held, weights=torch.zeros_like(held.weights)))
    assert all(np.isnan(value) for value in window.compute().values())
