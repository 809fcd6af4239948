"""bf16 in bottoms and heads: every built-in one takes a step, and what it hands over is fp32."""

import pyarrow.parquet as pq
import pytest
import torch

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.synthetic import make_config, make_table
from torchrec_mtl.initial import initialise_tables
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import build_model
from torchrec_mtl.registry import BUILT_IN

BINARY = [{"name": name, "kind": "binary", "label": name} for name in ("click", "long_view")]
TASKS = [*BINARY, {"name": "watch_time", "kind": "regression", "label": "watch_time"}]
OPTIONS = {
    "dmmp": {"student": [8], "dim": 4, "in_batch_weight": 0.0},
    "ncs4cvr": {"shared": [16, 8], "choose": "last"},
    "pepnet": {"tower": [16, 8], "norm": "batch"},
    "ple": {"levels": [[16], [8]], "tower": [8], "norm": "batch"},
    "htlnet": {"tower": [16, 8], "norm": "batch"},
}
BOTTOMS = {"dtrn": {}, "din": {}, "epnet": {"domain": ["tags"]}}
HTLNET = {"type": "htlnet", "core": "watch_time", "gamma": 0.3}


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    pq.write_table(make_table(256, seed=0), path)
    return str(path)


def build(train_file, precision, *, dtype="fp32", **sections):
    """Return a model, and the first batch of planted data."""
    raw = make_config(train_file, run_dir="unused", space=False) | sections
    raw["train"] = {"precision": precision}
    raw["features"]["tables"] = [{**table, "dtype": dtype} for table in raw["features"]["tables"]]
    config = parse(raw)
    files = open_data(config).train
    statistics = collect(files, config.data, config.features, config.tasks)
    model = build_model(config, {name: LabelScale.of(s) for name, s in statistics.labels.items()}, tables="cpu").train()
    initialise_tables(model.state_dict(), config.features, 0)
    encoder = Encoder(config.data, config.features, config.tasks, statistics)
    reader = ParquetReader(files, encoder, batch_size=64, streams=8, window=256)
    return model, next(iter(reader.epoch(0)))


def step(train_file, precision, **sections):
    """Return a model after one forward and backward, its output, and the logits."""
    model, batch = build(train_file, precision, **sections)
    found = {}
    model.objective.head.register_forward_hook(lambda _, __, out: found.update(out.logits))
    losses, output = model(batch)
    losses.sum().backward()
    return model, output, found


@pytest.mark.parametrize("name", BUILT_IN["head"])
def test_a_head_takes_a_step(train_file, name):
    sections = {"head": {"type": name, **OPTIONS.get(name, {})}, "tasks": BINARY if name == "dmmp" else TASKS}
    model, output, logits = step(train_file, "bf16", **sections)
    assert torch.isfinite(output.losses).all()
    assert {z.dtype for z in logits.values()} | {output.predictions.dtype} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(torch.isfinite(g).all() for g in gradients)
    _, expected, _ = step(train_file, "fp32", **sections)
    torch.testing.assert_close(output.losses, expected.losses, rtol=0.02, atol=0.005)
    assert not torch.equal(output.losses, expected.losses)


PLACES = [(name, "embeddings") for name in BUILT_IN["bottom"]]
PLACES += [(name, "representation") for name in BUILT_IN["bottom"] if name != "dtrn"]  # which makes one a task


@pytest.mark.parametrize(("name", "at"), PLACES)
def test_a_bottom_takes_a_step_and_gradients_meet_in_fp32(train_file, name, at):
    sections = {"bottom": {"type": name, **BOTTOMS.get(name, {})}, "gradient": {**HTLNET, "at": at}}
    sections["head"] = {"type": "shared_bottom", "shared": [16], "tower": [8]}
    model, output, _ = step(train_file, "bf16", **sections)
    boundary, expected = model.objective.boundary, step(train_file, "fp32", **sections)
    assert boundary.gramian.dtype == boundary.weights.dtype == torch.float32
    assert torch.isfinite(output.losses).all()
    # A Gramian of bf16 gradients would be off in the third digit even where these are equal.
    torch.testing.assert_close(
        boundary.gramian, expected[0].objective.boundary.gramian, rtol=0.1, atol=0.02 * float(boundary.gramian.max())
    )


def test_evaluation_has_the_same_precision(train_file):
    head = {"type": "shared_bottom", "shared": [16], "tower": [8]}
    model, batch = build(train_file, "bf16", head=head)
    seen = []
    model.objective.head.towers.last.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    model(batch)
    with torch.no_grad():
        model.eval()(batch)
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_a_head_is_handed_fp32(train_file):
    head = {"type": "shared_bottom", "shared": [16], "tower": [8]}
    model, batch = build(train_file, "bf16", head=head, bottom={"type": "dcn"})
    seen: list[Representation] = []
    model.objective.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    assert seen[0].shared.dtype == torch.float32


def test_unsharded_tables_of_fp16_hand_out_fp32(train_file):
    head = {"type": "shared_bottom", "shared": [16], "tower": [8]}
    model, output, _ = step(train_file, "fp32", head=head, dtype="fp16")
    assert {p.dtype for p in model.embeddings.parameters()} == {torch.float16}
    assert output.losses.dtype == torch.float32
    _, expected, _ = step(train_file, "fp32", head=head)
    torch.testing.assert_close(output.losses, expected.losses, rtol=1e-4, atol=1e-5)


def test_the_softmax_over_a_batch_is_fp32():
    from torchrec_mtl.features import Candidates
    from torchrec_mtl.heads.in_batch import in_batch_softmax
    from torchrec_mtl.heads.student import Encoded
    from torchrec_mtl.widths import in_full

    g = torch.Generator().manual_seed(0)
    encoded = Encoded(
        torch.randn(1, 8, 4, generator=g), torch.randn(2, 8, 4, generator=g), torch.zeros(2, 8), torch.ones(8, 2)
    )
    candidates = Candidates(keys=torch.arange(8), log_share=torch.randn(8, generator=g))
    expected = in_batch_softmax(encoded, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16), in_full(encoded.items):
        assert torch.equal(in_batch_softmax(encoded, candidates), expected)
