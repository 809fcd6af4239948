"""A new run starts from an earlier one by name; a checkpoint of ranks becomes plain tensors."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.runs import ADAPTIVE, BATCH, raw_config, saved, train_ranks, with_plan, write
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.heads.base import Phase
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.initial import initialise_tables
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import build_model
from torchrec_mtl.testing.ranks import RankError, run_ranks
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.run import train
from torchrec_mtl.training.session import open_session
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.unshard import unshard_run
from torchrec_mtl.training.warm_start import begin_from, find_source

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

Raw = dict[str, Any]
_TABLES = {
    "user": "model.embeddings.ebc.embedding_bags.user.weight",
    "item": "model.embeddings.ec.embeddings.item.weight",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    train_file = write(folder / "train.parquet", make_table(4 * BATCH, seed=1))
    return {"train": train_file, "eval": write(folder / "eval.parquet", make_table(200, seed=2))}


@pytest.fixture(scope="module")
def trained(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """A run of two ranks whose tables are cut into columns, with states a row and column."""
    raw = with_plan(config(files, tmp_path_factory.mktemp("runs") / "old"), "column_wise")
    train_ranks(raw, 2)
    return raw


def config(files: dict[str, str], run_dir: Path, **sections: Any) -> Raw:
    optim = {"sparse": {"type": "adagrad", "lr": 0.05}, "dense": ADAPTIVE["dense"]}
    return raw_config(files["train"], run_dir, **{"data": files, "optim": optim, **sections})


def successor(old: Raw, run_dir: Path, rows: Mapping[str, int], sharding: str = "table_wise", **given: Any) -> Raw:
    """The run that follows ``old``, with tables of other sizes and another plan."""
    tables = [{**t, "rows": rows.get(t["name"], t["rows"])} for t in old["features"]["tables"]]
    raw = {**old, "features": {**old["features"], "tables": tables}, "run_dir": str(run_dir)}
    return with_plan(raw, sharding) | {"init_from": {"run": old["run_dir"], **given}}


def begin(raw: Raw, out: str) -> str:
    """Runs in a rank: start the run, save what it starts from; return what people are told."""
    run, files = parse(raw), open_files(raw["data"]["train"])
    statistics = Statistics.load(Path(raw["init_from"]["run"]) / "statistics.json")
    Path(run.run_dir).mkdir(exist_ok=True)
    session = open_session(run, statistics, torch.device("cpu"))
    source, told, state = find_source(run, fresh=False), io.StringIO(), TrainState()
    assert source is not None
    checkpoints = Checkpoints(out)
    console = Console(file=told, width=1000)
    begin_from(source, session, state, checkpoints=checkpoints, files=files, console=console)
    checkpoints.save(session.tensors(), state.notes(), step=1, best=False)
    return told.getvalue()


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise"])
def test_unshard_gives_what_the_ranks_held(trained: Raw, files: dict[str, str], tmp_path: Path, sharding: str) -> None:
    raw = trained
    if sharding == "table_wise":
        raw = with_plan(config(files, tmp_path / "run"), "table_wise")
        train_ranks(raw, 2)
    done = unshard_run(raw["run_dir"], tmp_path / "plain.pt", which="latest", optimizers=True)
    found = torch.load(tmp_path / "plain.pt", weights_only=True)
    whole = saved(raw["run_dir"])
    plain: dict[str, Tensor] = {f"model.objective.{name}": value for name, value in found["dense"].items()}
    plain |= {key: found["tables"][table] for table, key in _TABLES.items()}
    plain["model.embeddings.ebc.embedding_bags.tag.weight"] = found["tables"]["tag"]
    for path, states in found["dense_states"].items():
        plain |= {f"optim.state.objective.{path}.{state}": value for state, value in states.items()}
    for key in [key for key in plain if key.startswith("model.embeddings.")]:
        table = key.split(".")[-2]
        for state, value in found["table_states"][table].items():
            plain[f"optim.state.{key.removeprefix('model.')}.{table}.{state}"] = value
    assert plain.keys() == whole.keys()
    assert all(torch.equal(value, whole[key]) for key, value in plain.items())
    assert done.tensors == len(whole)
    assert done.bytes == sum(value.numel() * value.element_size() for value in whole.values())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    print(f"{sharding}: {done.tensors} tensors, {done.bytes:,} bytes, equal to what 2 ranks held")


def test_the_plain_tensors_make_a_model_that_predicts_as_the_run_does(trained: Raw, tmp_path: Path) -> None:
    unshard_run(trained["run_dir"], tmp_path / "plain.pt")
    found = torch.load(tmp_path / "plain.pt", weights_only=True)
    run = parse(trained)
    statistics = Statistics.load(Path(trained["run_dir"]) / "statistics.json")
    scales = {name: LabelScale.of(s) for name, s in statistics.labels.items()}
    model = build_model(run, scales, tables="cpu")
    model.objective.load_state_dict(found["dense"])
    with torch.no_grad():
        for table, weight in found["tables"].items():
            model.embeddings.parameters_of([table])[0].copy_(weight)
    expected, batches = run_ranks(predictions, 1, trained)[0]
    model.eval()
    with torch.no_grad():
        mine = torch.cat([model(batch)[1].predictions for batch in batches])
    difference = float(((mine - expected).abs() / expected.abs()).max())
    assert difference < 1e-6
    print(f"{len(mine)} rows: predictions of the plain model are off the run's by {difference:.1e} of them")


def predictions(raw: Raw) -> tuple[Tensor, list[Any]]:
    """Runs in a rank: what the trained run predicts, and the batches it read."""
    statistics = Statistics.load(Path(raw["run_dir"]) / "statistics.json")
    session = open_session(parse(raw), statistics, torch.device("cpu"))
    session.restore(Checkpoints(raw["run_dir"]), "best", weights_only=True)
    batches = list(session.reader(open_files(raw["data"]["eval"]), train=False).epoch(0))
    session.model.eval()
    with torch.no_grad():
        outputs = list(session.run(iter(batches)))
    return torch.cat([output.predictions for output in outputs]), batches


@pytest.mark.parametrize(("sharding", "optimizers"), [("table_wise", True), ("column_wise", False)])
def test_a_grown_table_keeps_its_rows_bit_for_bit(
    trained: Raw, tmp_path: Path, sharding: str, optimizers: bool
) -> None:
    raw = successor(trained, tmp_path / "new", {"user": 130}, sharding, optimizers=optimizers)
    told = run_ranks(begin, 2, raw, str(tmp_path / "start"))[0]
    start, old = saved(tmp_path / "start"), saved(trained["run_dir"], "best")
    fresh = initial(raw)
    user, item = (start[key] for key in _TABLES.values())
    assert torch.equal(user[:100], old[_TABLES["user"]])
    assert torch.equal(user[100:], fresh[_TABLES["user"]][100:])
    assert torch.equal(item, old[_TABLES["item"]])
    state = "optim.state.embeddings.ebc.embedding_bags.user.weight.user.momentum1"
    moment = "optim.state.objective.head.last.0.weight.exp_avg"
    if optimizers:
        assert torch.equal(start[state][:100], old[state])
        assert torch.equal(start[moment], old[moment])
    else:
        assert not start[state].any()
        assert not start[moment].any()
    assert not start[state][100:].any()
    notes = Checkpoints(tmp_path / "start").notes("latest")
    assert notes is not None
    assert notes["updates"] == notes["origin_updates"] == (4 if optimizers else 0)
    assert "  table user keeps 100 rows and gets 30 new ones\n" in told
    report = json.loads((tmp_path / "new" / "init_from.json").read_text())
    assert report["tables"] == ["item", "tag", "user"]
    assert report["grown"] == {"user": {"kept": 100, "new": 30}}
    assert report["notes"] == []
    assert report["not_used"] == sorted(report["fresh"])
    # What belongs to the data and to the course of the old run.
    assert set(report["fresh"]) == {"objective.losses.2.mean", "objective.losses.2.std"}
    print(f"{sharding}, states taken: {optimizers}: 100 rows kept bit for bit, 30 as a fresh run has them")


def initial(raw: Raw) -> dict[str, Tensor]:
    """The tables of the same run begun from its seed."""
    run = parse(raw)
    model = build_model(run, {}, tables="cpu")
    state = model.state_dict()
    initialise_tables(state, run.features, run.train.seed)
    return {f"model.{name}": value for name, value in state.items()}


def test_what_does_not_fit_is_fresh_and_said(trained: Raw, tmp_path: Path) -> None:
    raw = successor(trained, tmp_path / "new", {"user": 90, "tag": 128})
    raw["features"]["tables"][1]["dim"] = 128
    raw["tasks"] = raw["tasks"][1:]
    raw["tasks"][1] = {**raw["tasks"][1], "space": None}
    raw["tasks"][0] = {**raw["tasks"][0], "space": None}
    raw["gradient"] = {"type": "sum"}
    told = run_ranks(begin, 1, raw, str(tmp_path / "start"))[0]
    assert "table user is fresh: it has 90 rows, in the run 100: which of them to keep is not known" in told
    assert "table item is fresh: its dim is 128, in the run 256" in told
    assert "table tag is fresh: it has 128 rows, in the run 64, and its ids are hashed" in told
    assert "note: the run's tasks were click, long_view, watch_time: what a head numbers by task" in told
    fresh = initial(raw)
    start = saved(tmp_path / "start")
    assert torch.equal(start[_TABLES["user"]], fresh[_TABLES["user"]])


def test_tables_of_a_task_start_from_the_shared_ones(trained: Raw, tmp_path: Path) -> None:
    raw = successor(trained, tmp_path / "new", {})
    raw |= {"head": {"type": "stem"}, "gradient": {"type": "sum"}}
    told = run_ranks(begin, 1, raw, str(tmp_path / "start"))[0]
    start, old = saved(tmp_path / "start"), saved(trained["run_dir"], "best")
    copies = [key for key in start if key.startswith("model.embeddings.ebc.embedding_bags.user")]
    assert len(copies) == 4
    assert all(torch.equal(start[key], old[_TABLES["user"]]) for key in copies)
    assert "note: the run's head was htlnet" in told


def test_a_run_goes_on_without_what_it_started_from(trained: Raw, tmp_path: Path) -> None:
    raw = successor(trained, tmp_path / "new", {"user": 130})
    cold = {key: value for key, value in raw.items() if key != "init_from"} | {"run_dir": str(tmp_path / "cold")}
    raw["train"] = cold["train"] = {"max_steps": 4, "log_every": 1}
    run_ranks(started, 1, raw)
    first = losses(tmp_path / "new")
    train_ranks(cold, 1)
    assert first[0] != losses(tmp_path / "cold")[0]
    # It is finished: it neither starts again nor asks for the earlier run.
    gone = {**raw, "init_from": str(tmp_path / "gone")}
    again = train_ranks(gone, 1)
    assert not again.trained
    assert losses(tmp_path / "new") == first
    with pytest.raises(RankError, match=r"init_from\.run: .* is not a run: it has no config\.yaml of one"):
        run_ranks(started_fresh, 1, gone)
    assert losses(tmp_path / "new") == first  # nothing was forgotten for a run that cannot begin


def started(raw: Raw) -> None:
    """Runs in a rank."""
    train(parse(raw), torch.device("cpu"), console=Console(file=io.StringIO()))


def started_fresh(raw: Raw) -> None:
    """Runs in a rank."""
    train(parse(raw), torch.device("cpu"), fresh=True, console=Console(file=io.StringIO()))


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss/click"] for line in lines if "train/loss/click" in line]


class Twice(SharedBottom):
    """Trains two steps, goes back to where it started, and trains them again."""

    def phases(self, epochs: int) -> Sequence[Phase]:
        return (Phase("first", epochs, steps=2), Phase("again", epochs, rewind="all", steps=2))


def test_a_head_that_rewinds_goes_back_to_where_the_run_started(trained: Raw, tmp_path: Path) -> None:
    raw = successor(trained, tmp_path / "new", {"user": 130}, optimizers=True)
    raw |= {"head": {"type": "tests.distributed.test_warm_start:Twice", "shared": [8], "tower": [4]}}
    raw |= {"gradient": {"type": "sum"}, "train": {"log_every": 1}}
    cold = {key: value for key, value in raw.items() if key != "init_from"} | {"run_dir": str(tmp_path / "cold")}
    train_ranks(raw, 2)
    train_ranks(cold, 2)
    warm, fresh = losses(tmp_path / "new"), losses(tmp_path / "cold")
    assert warm[:2] == warm[2:]
    assert fresh[:2] == fresh[2:]
    assert warm[0] != fresh[0]


def test_nothing_that_fits_is_an_error(trained: Raw, tmp_path: Path) -> None:
    raw = successor(trained, tmp_path / "new", {"user": 90, "item": 50, "tag": 60})
    raw |= {"head": {"type": "shared_bottom", "shared": [8], "tower": [4]}, "gradient": {"type": "sum"}}
    with pytest.raises(RankError, match=r"init_from: nothing in .* fits this run \(.*user.*it has 90 rows"):
        run_ranks(begin, 2, raw, str(tmp_path / "start"))


def test_a_damaged_checkpoint_is_refused_on_all_ranks(trained: Raw, files: dict[str, str], tmp_path: Path) -> None:
    raw = config(files, tmp_path / "run", train={"max_steps": 2})
    train_ranks(raw, 1)
    checkpoints = Checkpoints(tmp_path / "run")
    part = checkpoints.folder / checkpoints.index()["latest"] / "__0_0.distcp"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(RankError, match=r"init_from: .* is damaged"):
        run_ranks(begin, 2, successor(raw, tmp_path / "new", {}), str(tmp_path / "start"))
    with pytest.raises(RuntimeError, match="is damaged"):
        unshard_run(tmp_path / "run", tmp_path / "plain.pt")
    assert not (tmp_path / "plain.pt").exists()
