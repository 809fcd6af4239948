"""The dense part on whole models: the two ways to tell gradients apart agree, and rules see the tasks that are on."""

from dataclasses import replace
from unittest.mock import PropertyMock, patch

import pyarrow.parquet as pq
import pytest
import torch

from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.synthetic import make_config, make_table
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.initial import initialise_tables
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import build_model
from torchrec_mtl.objective import Objective

HTLNET = {"type": "htlnet", "tower": [16, 8]}
RULE = {"type": "htlnet", "core": "watch_time", "gamma": 0.3}


class Records(GradientRule):
    """A plug-in that remembers the losses it is shown and weighs every task 1."""

    needs = "losses"

    class Config(RuleConfig):
        type: str = "records"

    def weights(self, gramian, losses):
        self.seen = losses.clone()
        return torch.ones_like(losses)


class Views(Concat):
    """A plug-in that makes one representation a task, all of them one tensor: the columns times 2, 3, and so on."""

    per_task = True

    def __init__(self, spec, tasks, config):
        super().__init__(spec, tasks, config)
        self.factors = torch.arange(2.0, 2 + len(tasks)).view(-1, 1, 1)

    def forward(self, features):
        representation = super().forward(features)
        return replace(representation, per_task=self.factors * representation.shared)


@pytest.fixture
def step(tmp_path):
    """Build a model on planted data and return it after one forward and backward."""
    path = tmp_path / "train.parquet"
    pq.write_table(make_table(256, seed=0), path)

    def run(before=lambda model: None, **sections):
        config = parse(make_config(str(path), run_dir=str(tmp_path)) | {"head": HTLNET, "gradient": RULE} | sections)
        statistics = collect(open_data(config).train, config.data, config.features, config.tasks)
        scales = {name: LabelScale.of(s) for name, s in statistics.labels.items()}
        model = build_model(config, scales, tables="cpu").train()
        initialise_tables(model.state_dict(), config.features, 0)
        before(model)
        encoder = Encoder(config.data, config.features, config.tasks, statistics)
        reader = ParquetReader(open_data(config).train, encoder, batch_size=64, streams=8, window=256)
        losses, _ = model(next(iter(reader.epoch(0))))
        losses.sum().backward()
        return model

    return run


@pytest.mark.parametrize(
    ("at", "exact"), [("embeddings", "boundary"), ("embeddings", "rows"), ("representation", "boundary")]
)
def test_fan_out_equals_per_task_passes_bit_by_bit(step, at, exact):
    gradient = {**RULE, "at": at, "exact": exact}
    fanned = step(gradient=gradient)
    with patch.object(Objective, "_can_fan_out", new_callable=PropertyMock, return_value=False):
        passed = step(gradient=gradient)
    assert torch.equal(fanned.objective.boundary.gramian, passed.objective.boundary.gramian)
    theirs = dict(passed.named_parameters())
    moved = {name: p.grad for name, p in fanned.named_parameters() if p.grad is not None}
    assert any("embedding" in name for name in moved)
    assert moved.keys() == {name for name, p in theirs.items() if p.grad is not None}
    assert [name for name, grad in moved.items() if not torch.equal(grad, theirs[name].grad)] == []


def test_fan_out_equals_per_task_passes_where_the_bottom_makes_one_representation_a_task(step):
    bottom = {"type": f"{__name__}:Views"}
    fanned = step(bottom=bottom)
    with patch.object(Objective, "_can_fan_out", new_callable=PropertyMock, return_value=False):
        passed = step(bottom=bottom)
    torch.testing.assert_close(fanned.objective.boundary.gramian, passed.objective.boundary.gramian)
    for one, other in zip(fanned.parameters(), passed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("head", ["single_task", "stem"])
def test_the_bottom_of_a_tasks_own_tables_makes_that_tasks_representation(step, head):
    seen = []

    def watch(model):
        for bottom in model.objective.bottoms:
            bottom.register_forward_hook(lambda _m, _i, made: seen.append(made.shared))
        model.objective.head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].per_task))

    step(watch, bottom={"type": f"{__name__}:Views"}, head={"type": head}, gradient={"type": "sum"})
    *shared, found = seen
    for columns, view in zip(shared[-3:], found, strict=True):
        assert torch.equal(view, 2 * columns)


def test_a_rule_is_not_shown_tasks_that_are_off(step):
    gradient = {"type": f"{__name__}:Records"}
    model = step(lambda model: model.objective.activate(["click"]), gradient=gradient)
    click, *others = model.objective.rule.seen.tolist()
    assert click > 0
    assert others == [0.0, 0.0]


def test_the_state_of_a_rule_is_state_of_the_model(step):
    model = step(gradient={**RULE, "ema": 0.9})
    norms = model.state_dict()["objective.rule.norms"]
    assert norms.shape == (1, 3)
    assert (norms > 0).all()
