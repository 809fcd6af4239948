"""What a training tells TensorBoard, MLflow, and sinks of others: the numbers of its own log."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.runs import BATCH, interrupted, raw_config, write
from tests.sinks import Keeping
from torchrec_mtl.config.load import ConfigError, parse
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train
from torchrec_mtl.training.trainer import InterruptedTrainingError
from torchrec_mtl.whereabouts import whereabouts

PLAIN = {"head": {"type": "shared_bottom", "shared": [8], "tower": [4]}, "gradient": {"type": "sum"}}
DOCS = Path(__file__).parents[3] / "docs" / "sinks.md"


@pytest.fixture(scope="module", autouse=True)
def group():
    with process_group("cpu"):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = {"train": (6 * BATCH, 1), "eval": (90, 2), "test": (80, 3)}
    return {split: write(folder / f"{split}.parquet", make_table(n, seed=seed)) for split, (n, seed) in rows.items()}


@pytest.fixture
def trained(files, tmp_path):
    """Train with sinks; return the folder and what was shown."""

    def run(*sinks, **options):
        options = {"log_every": 2, "eval_every": 3, "sinks": list(sinks), **options}
        raw = raw_config(files["train"], tmp_path / "run", **PLAIN, data=files, train=options)
        shown = io.StringIO()
        result = train(parse(raw), torch.device("cpu"), console=Console(file=shown, width=400))
        return tmp_path / "run", shown.getvalue(), result

    return run


def logged(folder):
    """(name, step) -> value of the run's own log, and of its metrics on the test data."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {(name, line["step"]): value for line in lines for name, value in line.items() if "/" in name}
    last = json.loads((folder / "metrics.json").read_text())
    of_test = {
        (f"test/{task}/{name}", last["step"]): value
        for task, metrics in last["tasks"].items()
        for name, value in metrics.items()
        if value is not None
    }
    assert found
    assert of_test
    return found | of_test


def test_tensorboard_shows_the_same_scalars(trained):
    folder, _, _ = trained()
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    tags = events.Tags()["scalars"]
    found = {(tag, event.step): event.value for tag in tags for event in events.Scalars(tag)}
    expected = logged(folder)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-6)  # TensorBoard keeps float32


def test_a_sink_gets_the_same_numbers_and_the_config(trained):
    folder, _, _ = trained("tests.sinks:Keeping")
    kept = Keeping.made[-1]
    assert (kept.run.run_dir, kept.first_step, kept.closed) == (str(folder), 0, 1)
    assert {(name, step): value for step, values in kept.lines for name, value in values.items()} == logged(folder)


def test_a_sink_that_fails_leaves_the_training_as_it_is(trained):
    folder, shown, result = trained("tests.sinks:Failing")
    assert "sink tests.sinks:Failing failed at step 3: ConnectionError: the server has gone [away]" in shown
    assert shown.count("sink tests.sinks:Failing") == 1
    assert result.trained
    assert (folder / "metrics.json").is_file()
    assert ("train/loss/click", 6) in logged(folder)


def test_a_sink_that_cannot_be_made_stops_the_run_and_leaves_nothing(trained, tmp_path):
    with pytest.raises(ValueError, match=r"tests\.sinks:Impossible cannot be opened: PermissionError: wrong password"):
        trained("tests.sinks:Keeping", "tests.sinks:Impossible")
    assert not (tmp_path / "run").exists()
    assert Keeping.made[-1].closed == 1


def test_a_sink_that_does_not_open_is_named_by_whoever_waits(files, tmp_path, monkeypatch):
    options = {"sinks": ["tests.sinks:Keeping"], "timeout_s": 1.0}
    raw = raw_config(files["train"], tmp_path / "run", **PLAIN, data=files, train=options)
    gate, seen = threading.Event(), []

    def opened(self, run, first_step):
        seen.append(str(whereabouts))
        gate.wait()

    monkeypatch.setattr(Keeping, "__init__", opened)
    with pytest.raises(ValueError, match=r"tests\.sinks:Keeping cannot be opened: it was not done after 0\.5 s"):
        train(parse(raw), torch.device("cpu"), console=Console(file=io.StringIO()))
    gate.set()
    assert "opening the sinks of train.sinks" in seen[0]
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_a_sink_that_it_began_without(trained):
    with pytest.raises(InterruptedTrainingError), interrupted(5, rank=0, head_class=SharedBottom):
        trained()
    folder, _, _ = trained("tests.sinks:Keeping")
    kept = Keeping.made[-1]
    assert kept.first_step == 5
    assert {step for step, _ in kept.lines} == {step for _, step in logged(folder) if step > 5}


def test_a_finished_run_asks_no_sink(trained):
    trained()
    before = len(Keeping.made)
    assert not trained("tests.sinks:Keeping")[2].trained
    assert len(Keeping.made) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", r"train\.sinks\.0: unknown sink 'nobody'"),
        ("tests.sinks:Keping", r"train\.sinks\.0: 'tests\.sinks' has no sink 'Keping'\. Did you mean 'Keeping'"),
        ("no.such:Sink", r"train\.sinks\.0: cannot import sink"),
        ("json:JSONDecoder", r"train\.sinks\.0: 'json:JSONDecoder' is no sink: it has no attribute 'write'"),
        ("json:dumps", r"train\.sinks\.0: 'json:dumps' is no sink: it must be a class"),
    ],
)
def test_a_wrong_name_is_told_when_the_config_is_read(files, tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        parse(raw_config(files["train"], tmp_path / "run", **PLAIN, train={"sinks": [name]}))


def test_dotted_paths_can_be_switched_off(files, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHREC_MTL_PLUGINS", "off")
    with pytest.raises(ConfigError, match=r"sink 'tests\.sinks:Keeping' is code that the config brings in"):
        parse(raw_config(files["train"], tmp_path / "run", **PLAIN, train={"sinks": ["tests.sinks:Keeping"]}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_mlflow_sink_of_the_docs_logs_to_mlflow(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)  # where it puts what is no number
    (code,) = re.findall(r"```python\n(# my_sinks\.py.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_sinks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    folder, shown, _ = trained("my_sinks:MLflowSink")
    sys.modules.pop("my_sinks")
    assert "sink" not in shown
    from mlflow import MlflowClient

    client, run_id = MlflowClient(), (folder / "mlflow_run_id").read_text()
    found = {
        (name, metric.step): metric.value
        for name in client.get_run(run_id).data.metrics
        for metric in client.get_metric_history(run_id, name)
    }
    assert found == pytest.approx(logged(folder))
    assert client.get_run(run_id).data.params == {"head": "shared_bottom", "bottom": "concat", "seed": "0"}
    assert client.get_run(run_id).info.status == "FINISHED"
