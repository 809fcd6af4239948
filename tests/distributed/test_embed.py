"""The examples that put a head into somebody's own TorchRec script, or into a plain module: on one and two ranks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection

from tests.embed_examples import EXAMPLES, load, write_rows
from torchrec_mtl import HTLNet, Representation
from torchrec_mtl.testing import run_ranks

BATCH, CPU = 128, torch.device("cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=2048, test=512)


def fill(state: dict[str, Any]) -> None:
    """The same tables, sharded or not, whichever rank holds them."""
    for key in sorted(state):
        if ".t_" in key or "tables." in key:
            parts = (
                [s.tensor for s in state[key].local_shards()] if hasattr(state[key], "local_shards") else [state[key]]
            )
            for tensor in parts:
                g = torch.Generator().manual_seed(len(key))
                tensor.detach().copy_(torch.randn(tensor.shape, generator=g) * 0.1)


def no_noise() -> Any:
    """HTLNet samples labels from torch's generator where no trainer hands it numbers that agree over ranks."""
    return patch.object(HTLNet, "_uniform", lambda *_: None)


def train_dlrm(folder: Path, steps: int | None, epochs: int) -> dict[str, Any]:
    """Runs in a rank: the script's own parts, from tables that are the same for any number of ranks."""
    script = load("embed_in_dlrm")
    torch.manual_seed(0)
    with no_noise():
        model = script.shard(script.make_model(CPU), CPU, BATCH)
        fill(model.state_dict())
        train = script.read(folder, "train")
        if steps is not None:
            ids = train.sparse_features.values().view(len(script.SPARSE), -1).T[: steps * BATCH]
            train = type(train)(train.dense_features[: steps * BATCH], script.bags(ids), train.labels[: steps * BATCH])
        losses = script.fit(model, CPU, train, BATCH, epochs)
        scores, labels = script.predict(model, CPU, script.read(folder, "test"), BATCH)
    hook = model.module.model.over_arch.hook
    tables = {
        key: shard.tensor.detach()
        for key, value in model.state_dict().items()
        if ".t_" in key
        for shard in value.local_shards()
    }
    return {
        "losses": torch.stack(losses),
        "scores": scores,
        "auc": [script.auc(scores[:, k], labels[:, k] > 0) for k in range(labels.shape[1])],
        "gramians": torch.stack([g for g, _ in hook.boundary.history]),
        "weights": torch.stack([w for _, w in hook.boundary.history]),
        "tables": tables,
    }


def train_module(folder: Path, epochs: int) -> dict[str, Any]:
    """Runs in a rank."""
    script = load("embed_in_module")
    torch.manual_seed(0)
    with no_noise():
        model = DistributedDataParallel(script.Model(), static_graph=True)
        losses = script.fit(model, CPU, script.dlrm.read(folder, "train"), BATCH, epochs)
        scores, labels = script.dlrm.predict(model, CPU, script.dlrm.read(folder, "test"), BATCH)
    mean = torch.stack(losses)
    dist.all_reduce(mean)
    return {
        "losses": mean / dist.get_world_size(),
        "scores": scores,
        "auc": [script.dlrm.auc(scores[:, k], labels[:, k] > 0) for k in range(labels.shape[1])],
        "weights": torch.stack([w for _, w in model.module.hook.boundary.history]),
    }


def in_file_order(scores: Tensor, world: int) -> Tensor:
    """Scores of the ranks one after another, as of one process: rank r of W has rows r, r + W, ... of each batch."""
    return scores.view(world, -1, scores.shape[1]).transpose(0, 1).reshape(scores.shape)


def assert_same(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for found in two:
        torch.testing.assert_close(found["losses"], one["losses"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(in_file_order(found["scores"], 2), one["scores"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["weights"], one["weights"], rtol=1e-4, atol=1e-4)
        assert torch.equal(found["weights"], two[0]["weights"])


def assert_learned(found: dict[str, Any]) -> None:
    losses = found["losses"]
    assert (losses[-8:].mean(0) < losses[:8].mean(0)).all()
    assert min(found["auc"]) > 0.65


@pytest.mark.distributed
@pytest.mark.slow
def test_htlnet_in_torchrecs_dlrm_learns_and_two_ranks_equal_one_process(rows: Path) -> None:
    [one] = run_ranks(train_dlrm, 1, rows, None, 3)
    two = run_ranks(train_dlrm, 2, rows, None, 3)
    assert_same(one, two)
    assert_learned(two[0])
    assert all(len(found["tables"]) < len(one["tables"]) for found in two)  # they were sharded


@pytest.mark.distributed
@pytest.mark.slow
def test_htlnet_in_a_plain_module_learns_and_two_ranks_equal_one_process(rows: Path) -> None:
    [one] = run_ranks(train_module, 1, rows, 3)
    two = run_ranks(train_module, 2, rows, 3)
    assert_same(one, two)
    assert_learned(two[0])


def draw_where_training_begins(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Runs in a rank: of each script, the first layer of its model and the first number that training draws."""
    found = {}
    for name in ("dlrm", "embed_in_dlrm", "embed_in_module"):
        script = load(name)
        parts = getattr(script, "dlrm", script)

        def fit(model: Any, *_: Any, name: str = name) -> None:
            dense = next(p for key, p in model.named_parameters() if "dense_arch" in key or "head" in key)
            found[name] = (dense.detach().clone(), torch.rand(1))

        with (
            patch.object(sys, "argv", [name, "--data", str(folder)]),
            patch.object(parts, "join", lambda: CPU),
            patch.object(parts, "predict", lambda *_: ()),
            patch.object(parts, "report", lambda: None),
            patch.object(script, "fit", fit),
            patch.object(dist, "destroy_process_group"),
        ):
            script.main()
    return found


@pytest.mark.distributed
def test_ranks_begin_with_the_same_model_and_then_draw_apart(rows: Path) -> None:
    first, second = run_ranks(draw_where_training_begins, 2, rows)
    assert len(first) == 3
    for name, (layer, _) in first.items():
        assert torch.equal(layer, second[name][0]), name
        # Not merely other numbers: making the tables of a rank draws some already.
        for rank, found in enumerate((first, second)):
            assert torch.equal(found[name][1], torch.rand(1, generator=torch.Generator().manual_seed(rank))), name


def step_by_hand(folder: Path) -> dict[str, Any]:
    """Runs in a rank: Algorithm 1 on ordinary tables, and row-wise Adagrad's first step written out."""
    script = load("embed_in_dlrm")
    torch.manual_seed(0)
    model = script.make_model(CPU).train()
    arch = model.model.sparse_arch
    ebc = arch.embedding_bag_collection
    arch.embedding_bag_collection = EmbeddingBagCollection(tables=ebc.embedding_bag_configs(), device=CPU)
    fill(model.state_dict())
    train = script.read(folder, "train")
    ids = train.sparse_features.values().view(len(script.SPARSE), -1).T[:BATCH]
    pooled = arch(script.bags(ids))
    x = model.model.inter_arch(model.model.dense_arch(train.dense_features[:BATCH]), pooled)
    with no_noise():
        z = model.model.over_arch.head(Representation(x)).logits
    y = train.labels[:BATCH]
    losses = [
        binary_cross_entropy_with_logits(z["buys_again"], y[:, 0]),
        binary_cross_entropy_with_logits(z["buys_twice"], y[:, 1]),
        mse_loss(z["spend"], y[:, 2].log1p()),
    ]
    g = torch.stack([torch.autograd.grad(loss, pooled, retain_graph=True)[0].flatten() for loss in losses])
    core, total = g[2], g[2].clone()
    for task in g[:2]:
        adjusted = task - 0.5 * (task @ core).clamp(max=0) / (core @ core) * core
        total += 0.1 * (core.norm() / adjusted.norm()).clamp(0.1, 10) * adjusted + 0.9 * adjusted
    tables = dict(model.named_parameters())
    named = {key: p for key, p in tables.items() if ".t_" in key}
    grads = torch.autograd.grad(pooled, list(named.values()), total.view_as(pooled))
    stepped = {
        key: p.detach() - 0.02 * grad / (grad.square().mean(1, keepdim=True).sqrt() + 1e-10)
        for (key, p), grad in zip(named.items(), grads)
    }
    return {"gramian": g @ g.T, "tables": stepped}


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2])
def test_the_hook_changes_the_tables_step_as_the_papers_rule_says(rows: Path, world: int) -> None:
    [expected] = run_ranks(step_by_hand, 1, rows)
    assert (expected["gramian"][:2, 2] < 0).all()  # the projection has something to do
    ranks = run_ranks(train_dlrm, world, rows, 1, 1)
    for found in ranks:
        torch.testing.assert_close(found["gramians"][0, 0], expected["gramian"], rtol=1e-4, atol=1e-6)
    tables = {key: value for found in ranks for key, value in found["tables"].items()}
    assert len(tables) == len(expected["tables"])
    for key, value in expected["tables"].items():
        torch.testing.assert_close(tables[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.distributed
@pytest.mark.slow
def test_torchx_runs_the_script_on_two_ranks(rows: Path, tmp_path: Path) -> None:
    words = ["run", "-s", "local_cwd", "dist.ddp", "-j", "1x2", "--script", str(EXAMPLES / "embed_in_dlrm.py")]
    done = run("torchx", *words, "--", "--data", str(rows), "--epochs", "1", "--batch-size", str(BATCH), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test AUC of spend above 0" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("script", "label"), [("dlrm", "buys_again"), ("embed_in_module", "spend")])
def test_one_process_runs_the_scripts_too(rows: Path, tmp_path: Path, script: str, label: str) -> None:
    words = [str(EXAMPLES / f"{script}.py"), "--data", str(rows), "--epochs", "1", "--batch-size", str(BATCH)]
    done = run(sys.executable, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"test AUC of {label} above 0" in done.stdout


def test_missing_data_are_told(tmp_path: Path) -> None:
    done = run(sys.executable, str(EXAMPLES / "embed_in_dlrm.py"), cwd=tmp_path)
    assert done.returncode == 2
    assert "make it: python examples/cdnow/prepare.py" in done.stderr


def run(program: str, *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [program, *words],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
