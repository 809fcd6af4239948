"""Numbers reach files and terminals whole."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from torchrec_mtl.training.sinks import JsonLinesSink, ProgressSink, TensorBoardSink


def test_json_lines_parse_and_a_resumed_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        sink = JsonLinesSink(path)
        sink.write(step, {"train/loss/click": 0.5 / step})
        sink.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["train/loss/click"]) for line in lines] == [(1, 0.5), (2, 0.25)]
    assert all(line["time"] > 1e9 for line in lines)


def test_lines_that_a_killed_run_left_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "a": 1}\n{"step": 6, "a": 1}\n{"step": 7, "a"')
    sink = JsonLinesSink(path, last_step=5)
    sink.write(6, {"a": 2.0})
    sink.close()
    assert [(line["step"], line["a"]) for line in map(json.loads, path.read_text().splitlines())] == [(5, 1), (6, 2.0)]


@pytest.mark.parametrize("settled", [False, True])
def test_an_evaluation_that_is_made_again_is_logged_once(tmp_path: Path, settled: bool) -> None:
    """A kill may come after its line, and before the checkpoint that says that it has been."""
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 4, "eval/loss": 1}, {"step": 5, "train/loss/click": 1}, {"step": 5, "eval/loss": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    JsonLinesSink(path, 5, settled=settled).close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == (lines if settled else lines[:2])


def test_progress_writes_a_line_a_time_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    sink = ProgressSink(Console(file=text, width=40), total=10, first_step=0)
    sink.advance(1)
    sink.write(2, {"train/loss/click": 0.25, "train/samples_per_s": 1234.5, "train/lr_factor": 1.0})
    sink.write(4, {"eval/click/auc": 0.75, "eval/click/ece": 0.1, "eval/loss": 0.5})
    sink.close()
    train, evaluation = text.getvalue().splitlines()
    assert train.startswith("step 2/10  ETA 0:00:0")
    assert train.endswith("loss/click 0.25  samples_per_s 1234")
    assert "eval/click/auc 0.75  eval/loss 0.5" in evaluation
    assert "\x1b" not in text.getvalue()


def test_progress_shows_a_bar_on_a_terminal() -> None:
    text = io.StringIO()
    sink = ProgressSink(Console(file=text, width=100, force_terminal=True), total=10, first_step=4)
    sink.advance(10)
    sink.write(10, {"train/loss/click": 0.25})
    sink.write(10, {"eval/loss": 0.5})
    sink.close()
    assert "10/10" in text.getvalue()
    assert "step 10" in text.getvalue()


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, 0)
    sink.write(1, {"eval/loss": 0.5})
    sink.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))
