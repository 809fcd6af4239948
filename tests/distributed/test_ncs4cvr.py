"""NCS4CVR's phases: equal on 2 ranks and in 1 process, resumed in any of them, rewound bit for bit."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs import (
    ADAPTIVE,
    BATCH,
    assert_equal,
    differences,
    open_run,
    raw_config,
    saved,
    train_one,
    train_ranks,
    train_until,
    write,
)
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.heads.masks import unpack
from torchrec_mtl.heads.ncs4cvr import NCS4CVR
from torchrec_mtl.heads.rounds import Rounds
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.rewind import rewind, save_origin
from torchrec_mtl.training.session import Session, take

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

EPOCH_STEPS = 4
HEAD = {"type": "ncs4cvr", "shared": [16, 8], "rounds": 2, "density": 0.3}
MASKS = "model.objective.head.rounds."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    train, test = make_table(EPOCH_STEPS * BATCH - 20, seed=1), make_table(300, seed=2)
    return {"train": write(folder / "train.parquet", train), "eval": write(folder / "eval.parquet", test)}


def config(files: dict[str, str], run_dir: Path, head: dict[str, Any], **sections: Any) -> dict[str, Any]:
    train = {"epochs": 1, "log_every": 1, "keep": 100}
    optim = {**ADAPTIVE, "schedule": {"type": "cosine", "warmup": 0.2}}
    merged = {"data": files, "train": train, "optim": optim} | sections
    return raw_config(files["train"], run_dir, head={**HEAD, **head}, gradient={"type": "sum"}, **merged)


def events(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    new = ("time", "train/samples_per_s", "train/window/")
    return [{k: v for k, v in line.items() if not k.startswith(new)} for line in lines]


VARIANTS: dict[str, dict[str, Any]] = {
    "own": {},
    "one, from a warm-up, tables kept": {"masks": "one", "warmup_steps": 3, "rewind": "dense"},
    "grown, alternating, from a warm-up": {"grow": 0.2, "batches": "alternate", "warmup_steps": 6},
    "random, by layer, the last": {"masks": "random", "threshold": "layer", "choose": "last"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_equal_one_process(files: dict[str, str], tmp_path: Path, variant: str) -> None:
    sgd = {"sparse": {"type": "sgd", "lr": 0.05}, "dense": {"type": "sgd", "lr": 0.05}}
    raws = [config(files, tmp_path / str(n), VARIANTS[variant], optim=sgd) for n in (1, 2)]
    results = [train_ranks(raw, n) for n, raw in enumerate(raws, 1)]
    one, two = (saved(tmp_path / str(n)) for n in (1, 2))
    for key in [key for key in one if key.startswith(MASKS) and "scores" not in key]:
        assert torch.equal(one[key], two[key]), key
    found = differences(one, two)
    print(f"{variant}: {found}")
    assert max(found.values()) < 1e-5
    assert results[0].evaluation is not None
    assert results[1].evaluation is not None
    assert results[1].evaluation.loss == pytest.approx(results[0].evaluation.loss, rel=1e-5)


def test_all_ranks_have_the_same_masks(files: dict[str, str], tmp_path: Path) -> None:
    found = run_ranks(masks_after_training, 2, config(files, tmp_path, {"grow": 0.1}))
    assert_equal(*found)
    masks = unpack(found[0]["masks"], 1)
    assert masks.shape[:2] == (3, 3)
    assert not torch.equal(found[0]["masks"][0, 2], found[0]["masks"][1, 2])


def masks_after_training(raw: dict[str, Any]) -> dict[str, Tensor]:
    """Runs in a rank: train, and return what this rank holds."""
    heads: list[NCS4CVR] = []
    conclude = NCS4CVR.findings

    def catch(head: NCS4CVR) -> Any:
        heads.append(head)
        return conclude(head)

    NCS4CVR.findings = catch  # type: ignore[method-assign]
    try:
        train_one(raw)
    finally:
        NCS4CVR.findings = conclude  # type: ignore[method-assign]
    return dict(heads[0].rounds.named_buffers())


# In a round, at its end before its evaluation, at the end of a task's last round, in the joint phase.
STOPS = (2, EPOCH_STEPS, 3 * EPOCH_STEPS, 5 * EPOCH_STEPS + 2, 9 * EPOCH_STEPS + 3)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("variant", ["own", "grown, alternating, from a warm-up"])
def test_resume_in_any_phase_continues_bit_identically(
    files: dict[str, str], tmp_path: Path, variant: str, world_size: int
) -> None:
    whole, parts = (config(files, tmp_path / name, VARIANTS[variant]) for name in ("whole", "parts"))
    never_stopped = train_ranks(whole, world_size)
    for step in STOPS if world_size == 1 else STOPS[1:4]:
        stopped = run_ranks(train_until, world_size, parts, step, 0, NCS4CVR)
        assert stopped == [f"stopped after step {step}"] * world_size
    resumed = train_ranks(parts, world_size)
    assert dataclasses.replace(resumed, findings=()) == dataclasses.replace(never_stopped, findings=())
    a, b = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert_equal(a, b)
    assert Checkpoints(tmp_path / "whole").notes("latest") == Checkpoints(tmp_path / "parts").notes("latest")
    assert events(tmp_path / "whole") == events(tmp_path / "parts")


def test_each_rounds_score_and_mask_are_in_the_checkpoint(files: dict[str, str], tmp_path: Path) -> None:
    train_ranks(config(files, tmp_path, {}), 1)
    lines = events(tmp_path)
    for k, (task, metric) in enumerate([("click", "auc"), ("long_view", "auc"), ("watch_time", "rmse")]):
        logged = [line[f"prune/{task}/{metric}"] for line in lines if f"prune/{task}/{metric}" in line]
        (chosen,) = (line[f"prune/{task}/chosen"] for line in lines if f"prune/{task}/chosen" in line)
        tensors = saved(tmp_path)
        assert tensors[MASKS + "scores"][k].tolist() == logged
        best = max if metric == "auc" else min
        assert tensors[MASKS + "used"][k] == chosen == logged.index(best(logged[1:]))
        counts = [
            int(unpack(mask, tensors[MASKS + "masks"].shape[-1] * 8).sum()) for mask in tensors[MASKS + "masks"][k]
        ]
        assert counts[0] > counts[1] > counts[2] > 0


def test_full_masks_are_a_shared_bottom_trained_alone(files: dict[str, str], tmp_path: Path) -> None:
    """Rounds rewind everything: the joint phase knows nothing of them but the masks."""
    plain = config(files, tmp_path / "dense", {"masks": "dense", "rounds": 4, "density": 0.2})
    rounds = config(files, tmp_path / "rounds", {"density": 0.9999, "rounds": 1, "choose": "any"})
    train_ranks(plain, 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rounds, "choose", take_the_full_mask)
        run_here(rounds)
    a, b = saved(tmp_path / "dense"), saved(tmp_path / "rounds")
    weights = [key for key in a if not key.startswith(MASKS)]
    found = differences({key: a[key] for key in weights}, {key: b[key] for key in weights})
    print(f"full masks against none: {found}")
    assert max(found.values()) < 1e-5


def take_the_full_mask(rounds: Rounds, *_: object) -> int:
    rounds.used.zero_()
    return 0


def run_here(raw: dict[str, Any]) -> None:
    with process_group("cpu"):
        train_one(raw)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("way", ["seed", "checkpoint"])
def test_rewinding_restores_every_tensor_and_count(
    files: dict[str, str], tmp_path: Path, way: str, world_size: int
) -> None:
    raw = config(files, tmp_path, {}, data=files)
    raw["optim"] = {"sparse": {"type": "rowwise_adagrad", "lr": 0.05}, "dense": {"type": "adam", "lr": 0.01}}
    for what, equal in run_ranks(rewound, world_size, raw, way):
        assert what > 20  # tensors
        assert equal == dict.fromkeys(equal, True)


def rewound(raw: dict[str, Any], way: str) -> tuple[int, dict[str, bool]]:
    """Runs in a rank."""
    session, opened = open_run(raw)
    reader = session.reader(opened.train, train=True)
    checkpoints = Checkpoints(raw["run_dir"]) if way == "checkpoint" else None
    begun = 0
    if checkpoints is not None:
        steps(session, reader, 0, 2)
        save_origin(session, checkpoints, tables=True)
        begun = 2
    origin = local_state(session)
    steps(session, reader, 1, 3)
    after = local_state(session)
    with torch.no_grad():
        session.objective.head.rounds.used.fill_(1)
    rewind(session, checkpoints, tables=True, updates=begun)
    back = local_state(session)
    equal = {"origin": same(origin, back), "moved": not same(origin, after)}
    equal["kept"] = bool((session.objective.head.rounds.used == 1).all())
    session.objective.head.rounds.used.zero_()
    steps(session, reader, 1, 3)
    again = local_state(session)
    equal["went on"] = same(after, again)
    rewind(session, checkpoints, tables=False, updates=begun)
    dense = local_state(session)
    equal["dense only"] = same(only(again, tables=True), only(dense, tables=True)) and same(
        only(origin, tables=False), only(dense, tables=False)
    )
    equal["counts"] = any("iter" in key for key in origin)
    return len(origin), equal


def only(state: dict[str, Tensor], *, tables: bool) -> dict[str, Tensor]:
    """What belongs to the tables or to the dense part, without the kernels' counters."""
    return {key: value for key, value in state.items() if ("embeddings" in key) == tables and " iter" not in key}


def steps(session: Session, reader: Any, epoch: int, count: int) -> None:
    batches = session.read(reader, epoch)
    for _ in session.run(take(batches, count)):
        pass
    batches.close()


def local_state(session: Session) -> dict[str, Tensor]:
    """Copies of this rank's parts of all weights, buffers, and optimizer states, and of the kernels' step counters."""
    found = {f"{key}#{i}": part.clone() for key, parts in flat("", session.tensors()) for i, part in enumerate(parts)}
    found |= {f"embeddings {i} iter": kernel.iter.detach().clone() for i, kernel in enumerate(kernels(session))}
    return {key: value for key, value in found.items() if not key.startswith("/rng") and "rounds" not in key}


def kernels(session: Session) -> Iterator[Any]:
    """FBGEMM's modules, which TorchRec keeps out of ``modules()``."""
    for sharded in session.model.modules():
        for lookup in getattr(sharded, "_lookups", ()):
            inner = getattr(lookup, "module", lookup)
            yield from (m._emb_module for m in inner.modules() if hasattr(m, "_emb_module"))


def flat(path: str, value: object) -> Iterator[tuple[str, list[Tensor]]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(f"{path}/{key}", item)
    elif hasattr(value, "local_shards"):
        yield path, [shard.tensor for shard in value.local_shards()]
    elif isinstance(value, Tensor):
        yield path, [value.detach()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize(("way", "at_most"), [("seed", 0.3), ("checkpoint", 0.8)])
def test_rewinding_holds_no_second_copy_of_the_tables(
    files: dict[str, str], tmp_path: Path, way: str, at_most: float
) -> None:
    """From the seed they are filled in blocks; from a checkpoint one table (here of 3) at a time is read."""
    raw = config(files, tmp_path, {})
    for table in raw["features"]["tables"]:
        table |= {"rows": 200_000, "dim": 128}
    [(peak, tables)] = run_ranks(peak_of_a_rewind, 1, raw, way)
    print(f"{way}: rewinding took {peak / 1e6:.0f} MB more at its peak; the tables have {tables / 1e6:.0f} MB")
    assert tables > 300e6
    assert peak < at_most * tables


def peak_of_a_rewind(raw: dict[str, Any], way: str) -> tuple[int, int]:
    """Runs in a rank: bytes that rewinding added to the process at most, and bytes of the tables."""
    session, opened = open_run(raw)
    checkpoints = Checkpoints(raw["run_dir"]) if way == "checkpoint" else None
    if checkpoints is not None:
        save_origin(session, checkpoints, tables=True)
    steps(session, session.reader(opened.train, train=True), 0, 1)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory("VmRSS")
    rewind(session, checkpoints, tables=True, updates=0)
    tables = sum(part.nbytes for key, parts in flat("", session.tensors()["model"]) for part in parts if "embed" in key)
    return memory("VmHWM") - before, tables


def memory(what: str) -> int:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[what].split()[0]) * 1024
