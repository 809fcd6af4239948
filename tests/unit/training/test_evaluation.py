"""What an evaluation says of tasks without rows."""

import math
from dataclasses import replace

import torch

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.training.evaluation import as_json, evaluate

TASKS = [TaskConfig(name=name, kind="binary", label=name, loss=PluginConfig(type="bce")) for name in ("click", "buy")]
ROWS = torch.tensor([[0.2, 0.7], [0.9, 0.4]])
OUTPUT = StepOutput(
    names=("click", "buy"),
    losses=torch.zeros(2),
    loss_sums=torch.tensor([0.5, 0.0]),
    weight_sums=torch.tensor([2.0, 0.0]),
    predictions=ROWS,
    further={},
    labels=torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
    weights=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
    ids={},
    stop=False,
)


def test_a_task_without_rows_has_no_loss_and_adds_none():
    found = evaluate([OUTPUT], TASKS)
    assert found.tasks["click"]["loss"] == 0.25
    assert math.isnan(found.tasks["buy"]["loss"])
    assert found.loss == 0.25
    assert '"loss": null' in as_json(1, found)


def test_a_loss_of_zero_is_one():
    found = evaluate([replace(OUTPUT, weight_sums=torch.tensor([2.0, 3.0]))], TASKS)
    assert found.tasks["buy"]["loss"] == 0.0
