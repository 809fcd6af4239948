"""Tables of fp16, bottoms and heads in bf16, exchanges in fp16: near fp32, the same on 2 ranks, resumed bit for bit."""

import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.distributed.test_ncs4cvr import local_state, same, steps
from tests.runs import (
    ADAPTIVE,
    BATCH,
    HTLNET,
    RULE,
    SGD,
    assert_equal,
    differences,
    open_run,
    raw_config,
    saved,
    train_one,
    train_ranks,
    train_until,
    with_plan,
    write,
)
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.comms import comm_codecs
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.inference import evaluate_run, predict_run
from torchrec_mtl.training.rewind import rewind, save_origin
from torchrec_mtl.training.unshard import unshard_run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 10
HALF = 2.0**-11  # of a value, is the largest error of rounding to fp16
BF16 = 2.0**-8


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    return write(folder / "train.parquet", make_table(STEPS * BATCH - 30, seed=1, nulls=True))


def config(train_file: str, run_dir: Path, *, half: tuple[str, ...] = (), **sections: Any) -> dict[str, Any]:
    """The planted run; ``half``: names of the tables that are fp16."""
    raw = copy.deepcopy(raw_config(train_file, run_dir, **{"data": {"shuffle": False}} | sections))
    for table in raw["features"]["tables"]:
        table["dtype"] = "fp16" if table["name"] in half else "fp32"
    return raw


ALL = ("user", "item", "tag")


def tables(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.split(".")[-2]: v for k, v in tensors.items() if k.startswith("model.embeddings.")}


def adagrad(kind: str) -> dict[str, Any]:
    return {"sparse": {"type": kind, "lr": 0.02, "eps": 0.01}, "dense": SGD["dense"]}


@pytest.mark.parametrize(
    ("optimizer", "sharding"), [("sgd", "column_wise"), ("rowwise_adagrad", "table_wise"), ("adagrad", "column_wise")]
)
def test_tables_of_fp16_follow_fp32_and_two_ranks_one_process(
    train_file: str, tmp_path: Path, optimizer: str, sharding: str
) -> None:
    optim = SGD if optimizer == "sgd" else adagrad(optimizer)
    runs = {}
    for name, half, world_size in (("fp32", (), 1), ("one", ALL, 1), ("two", ALL, 2)):
        raw = with_plan(config(train_file, tmp_path / name, half=half, optim=optim), sharding)
        train_ranks(raw, world_size)
        runs[name] = saved(tmp_path / name)
    found = tables(runs["one"])
    assert {t.dtype for t in found.values()} == {torch.float16}
    assert {t.dtype for k, t in runs["one"].items() if k.startswith("optim.")} <= {torch.float32}
    largest = max(float(t.abs().max()) for t in found.values())
    # A table as a whole: Adagrad divides by its state, so that where a gradient is nearly 0 its sign moves a weight.
    far = max(float((t - w).norm() / w.norm()) for (t, w) in zip(found.values(), tables(runs["fp32"]).values()))
    of_ranks = differences(runs["two"], runs["one"])
    print(f"{optimizer}, {sharding}: largest {largest:.3g}; {far:.2g} of the norm from fp32; between ranks {of_ranks}")
    assert 0 < far < 0.02
    assert of_ranks["tables"] <= 2 * HALF * largest  # a value in the middle may be rounded to either side
    assert of_ranks["dense"] < 1e-5


@pytest.mark.parametrize("gradient", [RULE, {**RULE, "exact": "rows"}], ids=["boundary", "rows"])
def test_some_tables_of_fp16(train_file: str, tmp_path: Path, gradient: dict[str, Any]) -> None:
    for world_size in (1, 2):
        raw = config(train_file, tmp_path / str(world_size), half=("item", "user"), gradient=gradient)
        # Both types in the collection of sequences.
        raw["features"]["sequences"].append({"name": "labels", "column": "tags", "table": "tag", "max_length": 3})
        train_ranks(raw, world_size)
    one, two = saved(tmp_path / "1"), saved(tmp_path / "2")
    assert {name: t.dtype for name, t in tables(one).items()} == {
        "item": torch.float16,
        "user": torch.float16,
        "tag": torch.float32,
    }
    found = differences(one, two)
    assert found["tables"] < 2e-5
    assert found["dense"] < 1e-6


def test_initial_rows_are_those_of_fp32_rounded(train_file: str, tmp_path: Path) -> None:
    with process_group("cpu"):
        first = {name: open_run(config(train_file, tmp_path, half=half))[0] for name, half in (("a", ()), ("b", ALL))}
        a, b = (local_state(session) for session in first.values())
        keys = [key for key in a if key.startswith("/model/embeddings.")]
        assert keys
        assert all(torch.equal(a[key].half(), b[key]) for key in keys)


@pytest.mark.parametrize("world_size", [1, 2])
def test_everything_narrow_resumes_bit_for_bit(train_file: str, tmp_path: Path, world_size: int) -> None:
    sections = {"optim": ADAPTIVE, "train": {"precision": "bf16", "comms": "fp16", "log_every": 1}}
    whole, parts = (config(train_file, tmp_path / name, half=ALL, **sections) for name in ("whole", "parts"))
    train_ranks(whole, world_size)
    assert run_ranks(train_until, world_size, parts, 4, 0) == ["stopped after step 4"] * world_size
    train_ranks(parts, world_size)
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    found = {t.dtype for k, t in saved(tmp_path / "whole").items() if not k.startswith("model.embeddings.")}
    assert found == {torch.float32}  # whatever autocast did


@pytest.mark.parametrize("way", ["seed", "checkpoint"])
def test_tables_of_fp16_are_rewound(train_file: str, tmp_path: Path, way: str) -> None:
    with process_group("cpu"):
        session, files = open_run(config(train_file, tmp_path, half=ALL))
        reader, checkpoints = session.reader(files.train, train=True), None
        if way == "checkpoint":
            steps(session, reader, 0, 2)
            checkpoints = Checkpoints(tmp_path)
            save_origin(session, checkpoints, tables=True)
        origin = local_state(session)
        steps(session, reader, 1, 3)
        assert not same(origin, local_state(session))
        rewind(session, checkpoints, tables=True, updates=0)
        assert same(origin, local_state(session))


def test_a_run_with_tables_of_fp16_is_evaluated_unsharded_and_started_from(train_file: str, tmp_path: Path) -> None:
    half = config(train_file, tmp_path / "half", half=ALL, data={"eval": train_file})
    result = train_ranks(half, 2)
    _, evaluation, _ = evaluate_run(tmp_path / "half", [train_file])
    for task, metrics in (result.evaluation.tasks if result.evaluation else {}).items():
        assert evaluation.tasks[task] == pytest.approx(metrics, rel=1e-5)
    rows = predict_run(tmp_path / "half", [train_file], tmp_path / "scores.parquet")
    assert rows == pq.read_metadata(tmp_path / "scores.parquet").num_rows

    stored = tables(saved(tmp_path / "half", "best"))
    unshard_run(tmp_path / "half", tmp_path / "whole.pt", which="best")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)["tables"]
    assert all(torch.equal(whole[name], stored[name]) for name in ALL)

    for name, dtype, source in (("wide", torch.float32, "half"), ("narrow", torch.float16, "wide")):
        raw = config(train_file, tmp_path / name, half=ALL if dtype == torch.float16 else ())
        raw |= {"init_from": str(tmp_path / source), "train": {"max_steps": 1}}
        raw["optim"] = {"sparse": {"type": "sgd", "lr": 1e-30}, "dense": {"type": "sgd", "lr": 1e-30}}
        train_ranks(raw, 1)
        found = tables(saved(tmp_path / name))
        assert {t.dtype for t in found.values()} == {dtype}
        assert all(torch.equal(found[table].half(), stored[table]) for table in ALL)


def test_an_exchange_in_fp16_is_near_fp32_and_nothing_where_there_is_none(train_file: str, tmp_path: Path) -> None:
    runs = {}
    for comms in ("fp32", "fp16"):
        for world_size in (1, 2):
            run_dir = tmp_path / f"{comms}-{world_size}"
            train_ranks(config(train_file, run_dir, train={"comms": comms}), world_size)
            runs[comms, world_size] = saved(run_dir)
    assert_equal(runs["fp32", 1], runs["fp16", 1])
    found = differences(runs["fp32", 2], runs["fp16", 2])
    print(f"fp16 exchanged: {found}")
    assert 0 < found["tables"] < 1e-4
    assert found["dense"] < 1e-4


def test_gradients_of_a_large_batch_do_not_vanish_in_fp16(train_file: str, tmp_path: Path) -> None:
    raw = config(train_file, tmp_path, data={"batch_size": 65_536}, train={"comms": "fp16"})
    codecs = comm_codecs(parse(raw), torch.device("cpu"), 2)
    assert codecs is not None
    gradient = torch.tensor([1e-9, 3e-8, -7e-7, 2e-5, 0.01])
    for codec in codecs.values():
        assert codec.backward is not None
        back = codec.backward.decode(codec.backward.encode(gradient))
        torch.testing.assert_close(back, gradient, rtol=2 * HALF, atol=1e-12)
    assert (gradient.half() == 0).any()  # as they would be


def test_two_ranks_in_bf16_equal_one_process_to_its_rounding(train_file: str, tmp_path: Path) -> None:
    head = {"type": "shared_bottom", "shared": [16], "tower": [8]}
    runs = {}
    for precision, world_size in (("fp32", 1), ("bf16", 1), ("bf16", 2)):
        run_dir = tmp_path / f"{precision}-{world_size}"
        raw = config(train_file, run_dir, head=head, gradient={"type": "sum"}, train={"precision": precision})
        train_ranks(raw, world_size)
        runs[precision, world_size] = saved(run_dir)
    assert {t.dtype for t in runs["bf16", 1].values() if t.is_floating_point()} == {torch.float32}
    for name, other in (("from fp32", ("fp32", 1)), ("between ranks", ("bf16", 2))):
        found = differences(runs["bf16", 1], runs[other])
        print(f"bf16, {name}: {found}")
        assert max(found["tables"], found["dense"]) < BF16


def test_a_run_says_what_it_is_of(train_file: str, tmp_path: Path) -> None:
    """Narrower numbers are another run; a run of a version that had none goes on."""
    raw = config(train_file, tmp_path, head=HTLNET)
    train_ranks(raw, 1)
    path = tmp_path / "config.yaml"
    later = ("dtype:", "kernel:", "cache_load_factor:", "precision:", "comms:", "save:")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.strip().startswith(later)))
    assert not train_ranks(raw, 1).trained
    changed = config(train_file, tmp_path, half=("tag",), head=HTLNET, train={"comms": "fp16"})
    with pytest.raises(Exception, match=r"(?s)tables\.2\.dtype: was 'fp32', is 'fp16'.*comms: was 'fp32', is 'fp16'"):
        run_ranks(train_one, 1, changed)
