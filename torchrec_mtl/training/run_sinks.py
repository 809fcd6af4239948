"""The sinks of a run, on rank 0: its log, TensorBoard, those of ``train.sinks``, and the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.registry import resolve
from torchrec_mtl.training.distributed import on_rank_0_alone
from torchrec_mtl.training.evaluation import Evaluation
from torchrec_mtl.training.plugged_sinks import OPEN_S, GuardedSink, PluggedSink, close_together
from torchrec_mtl.training.sinks import JsonLinesSink, MetricSink, ProgressSink, TensorBoardSink
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.whereabouts import whereabouts


@contextmanager
def run_sinks(config: RunConfig, state: TrainState, total_steps: int, console: Console) -> Iterator[list[MetricSink]]:
    """Yield the sinks, and close them in the end; none on ranks other than 0.

    Args:
        config: of the run.
        state: where it stands.
        total_steps: that it plans.
        console: of the terminal.

    Raises:
        ValueError: one of ``train.sinks`` cannot be opened; on all ranks, and nothing was written.
    """
    if config.train.sinks:
        whereabouts.at("opening the sinks of train.sinks")
    with ExitStack() as stack:
        found = on_rank_0_alone(lambda: _open(config, state, total_steps, console, stack))
        yield found or []


def _open(
    config: RunConfig, state: TrainState, total_steps: int, console: Console, stack: ExitStack
) -> list[MetricSink]:
    run_dir = Path(config.run_dir)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    plugged: list[PluggedSink] = []
    stack.callback(close_together, plugged)
    patience = min(OPEN_S, config.train.timeout_s / 2)  # the other ranks wait meanwhile, no longer than timeout_s
    for name in config.train.sinks:  # first: where one cannot be opened, there is no log yet
        sink_class: Callable[[RunConfig, int], MetricSink] = resolve("sink", name)
        plugged.append(PluggedSink(name, partial(sink_class, config, state.step), say, open_s=patience))
    sinks: list[MetricSink] = [
        JsonLinesSink(run_dir / "metrics.jsonl", state.step, settled=state.settled == state.step),
        GuardedSink("TensorBoard", TensorBoardSink(run_dir / "tb", state.step + 1 if state.step else 0), say),
        *plugged,
        ProgressSink(console, total_steps, state.step),
    ]
    for sink in sinks:
        if not isinstance(sink, PluggedSink):
            stack.callback(sink.close)
    return sinks


def write_test(sinks: Sequence[MetricSink], step: int, evaluation: Evaluation) -> None:
    """Tell trackers the metrics on the test data, ``test/task/metric``; the run itself has them in ``metrics.json``."""
    values: Mapping[str, float] = {
        f"test/{task}/{name}": value
        for task, metrics in evaluation.tasks.items()
        for name, value in metrics.items()
        if not math.isnan(value)
    }
    for sink in sinks:
        if isinstance(sink, (GuardedSink, PluggedSink)):
            sink.write(step, values)
