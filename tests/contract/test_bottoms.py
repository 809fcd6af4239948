"""Every built-in bottom trains under every built-in head; under those that keep tasks apart, DTRN does so too."""

import dataclasses

import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.config.load import parse
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.features import GAP_BUCKETS
from torchrec_mtl.model import build_model
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.testing.subject import Subject, gradients_of

TASKS = ("click", "long_view", "watch_time")
BOTTOMS = {name: {"type": name} for name in BUILT_IN["bottom"]}
BOTTOMS["epnet"] |= {"domain": ["tags"]}
VARIANTS = {
    "dtrn, plain": {"type": "dtrn", "interest": "plain", "refinement": "none"},
    "dtrn, pooled": {"type": "dtrn", "interest": "pooled", "squeeze": "flat"},
    "dtrn, two layers": {"type": "dtrn", "layers": 2, "granularity": "bit", "refinement": "shared"},
}
B = 6
LENGTHS = {"watched": [10, 3, 0, 1, 0, 2], "liked": [2, 0, 0, 5, 1, 0]}


def config_of(bottom, head):
    """The planted config with a second sequence, whose events have times, and tasks that the head takes."""
    raw = make_config("unused.parquet", run_dir="unused")
    raw["data"]["eval"] = raw["data"]["train"]
    raw["features"]["sequences"] += [
        {"name": "liked", "table": "item", "max_length": 5, "target": "item_id", "times": "liked_at", "now": "now"}
    ]
    head_class = resolve("head", head)
    tasks = Subject(head_class, head_class.Config(), dict.fromkeys(TASKS, 1), 1).tasks_config()
    return parse(raw | {"bottom": bottom, "head": {"type": head}, "tasks": tasks})


def batch_of(config, lengths=LENGTHS, padding=0):
    """Rows told apart by their ids, and rows of padding without any behind them."""
    counts = {name: [*of_rows, *[0] * padding] for name, of_rows in lengths.items()}
    num_data = len(lengths["watched"])
    valid = torch.tensor([1.0] * num_data + [0.0] * padding)
    num_rows = len(valid)

    def ids(features):
        by_key = {f.name: counts.get(f.name, valid.long().tolist()) for f in features}
        values = [
            (3 * f + 5 * b + 7 * i) % 20
            for f, of_rows in enumerate(by_key.values())
            for b, count in enumerate(of_rows)
            for i in range(count)
        ]
        of_keys = torch.tensor(list(by_key.values())).flatten()
        return KeyedJaggedTensor(keys=list(by_key), values=torch.tensor(values, dtype=torch.long), lengths=of_keys)

    return Batch(
        dense=torch.arange(3.0 * num_rows).sin().view(num_rows, 3),
        sparse=ids(config.features.pooled),
        sequences=ids(config.features.unpooled),
        labels=torch.stack([torch.arange(num_rows) % n == 0 for n in (2, 3, 4)], dim=1).float(),
        weights=valid.unsqueeze(1).expand(-1, len(TASKS)),
        valid=valid,
        rows=torch.arange(num_rows),
        ids={},
        step=0,
        global_size=num_rows,
        gaps={"liked": torch.arange(sum(lengths["liked"])) % GAP_BUCKETS},
    )


def made(bottom, head, *, start=False):
    """A model without a weight at zero, where no gradient would pass, in evaluation mode."""
    config = config_of(bottom, head)
    model = build_model(config, {}, tables="cpu").eval()
    g = torch.Generator().manual_seed(1)
    for p in () if start else model.objective.bottoms.parameters():
        nn.init.normal_(p, std=0.3, generator=g)
    for p in model.embeddings.parameters():
        nn.init.normal_(p, generator=g)
    return config, model


@pytest.mark.parametrize("head", BUILT_IN["head"])
@pytest.mark.parametrize("bottom", (BOTTOMS | VARIANTS).values(), ids=BOTTOMS | VARIANTS)
def test_it_trains_under_every_head(bottom, head):
    config, model = made(bottom, head)
    losses, output = model.train()(batch_of(config))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(output.predictions).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    for name, p in (*model.objective.bottoms.named_parameters(), *model.embeddings.named_parameters()):
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("lengths", [{"watched": [0] * B, "liked": [0] * B}, {"watched": [0] * B, "liked": [1] * B}])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("bottom", ["dtrn", "din"])
def test_it_trains_without_histories(bottom, start, lengths):
    config, model = made(BOTTOMS[bottom], "mmoe", start=start)
    losses, output = model.train()(batch_of(config, lengths))
    losses.sum().backward()
    assert torch.isfinite(output.predictions).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def predictions(model, batch):
    with torch.no_grad():
        return model(batch)[1].predictions


# Head -> by task, whose predictions what belongs to it may move: its own alone, or those of later tasks too.
OWN, LATER = [{0}, {1}, {2}], [{0, 1, 2}, {1, 2}, {2}]
ALONE = ("shared_bottom", "mmoe", "ple", "pepnet", "ncs4cvr")
REACHED = [*((head, OWN) for head in ALONE), *((head, LATER) for head in ("aitm", "dbmtl", "htlnet"))]


def weights_of_tasks(model):
    (bottom,) = model.objective.bottoms
    return {"t": bottom.interest.norms.tasks, **dict(bottom.refinement.named_parameters())}


@pytest.mark.parametrize(("head", "reached"), REACHED)
def test_what_belongs_to_a_task_moves_the_predictions_that_read_it_alone_bit_by_bit(head, reached):
    config, model = made(BOTTOMS["dtrn"], head)
    batch = batch_of(config)
    for name, weight in weights_of_tasks(model).items():
        for k in range(3):
            before = predictions(model, batch)
            with torch.no_grad():
                weight[k] += 0.5
            moved = (predictions(model, batch) != before).any(0)
            assert set(moved.nonzero().flatten().tolist()) == reached[k], name


@pytest.mark.parametrize("head", ALONE)
def test_a_tasks_loss_reaches_no_other_tasks_weights(head):
    config, model = made(BOTTOMS["dtrn"], head)
    losses, _ = model.train()(batch_of(config))
    (bottom,) = model.objective.bottoms
    for k, loss in enumerate(losses[:3]):
        for gradient in gradients_of(loss, list(weights_of_tasks(model).values())):
            assert gradient.flatten(1).abs().sum(1).nonzero().flatten().tolist() == [k]
        shared = [*bottom.interest.norms.mlp.parameters(), *bottom.interest.transformer.parameters()]
        assert all(g.abs().sum() > 0 for g in gradients_of(loss, shared))


@pytest.mark.parametrize("bottom", BOTTOMS.values(), ids=BOTTOMS)
@pytest.mark.parametrize("head", ["shared_bottom", "single_task", "stem"])
def test_padding_moves_no_prediction_and_no_gradient(bottom, head):
    config, model = made(bottom, head)
    seen = []
    for padding in (0, 3):
        losses, output = model.train()(batch_of(config, padding=padding))
        seen.append((output.predictions[:B], gradients_of(losses.sum(), list(model.parameters()))))
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bottom", BOTTOMS.values(), ids=BOTTOMS)
def test_a_row_alone_has_the_predictions_of_the_row_in_a_batch(bottom):
    config, model = made(bottom, "shared_bottom")
    whole = predictions(model, batch_of(config))
    alone = {name: of_rows[:1] for name, of_rows in LENGTHS.items()}
    torch.testing.assert_close(predictions(model, batch_of(config, alone)), whole[:1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", ["shared_bottom", "single_task", "stem"])
def test_how_long_ago_an_event_was_moves_predictions(head):
    config, model = made(BOTTOMS["dtrn"], head)
    batch = batch_of(config)
    later = dataclasses.replace(batch, gaps={"liked": (batch.gaps["liked"] + 1) % GAP_BUCKETS})
    moved = (predictions(model, later) != predictions(model, batch)).any(1)
    assert torch.equal(moved, torch.tensor(LENGTHS["liked"]) > 0)
