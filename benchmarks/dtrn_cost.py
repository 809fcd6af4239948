r"""What DTRN costs: time of a step, and parameters of one more task and one more type of behaviour.

    python -m benchmarks.dtrn_cost [--batch 1024] [--repeats 7] [--data data/kuairand/train.parquet]

A step is forward, backward, and Adam of the bottom and a tower a task, on the features of examples/kuairand/dtrn.yaml
(embeddings drawn at random; lookups are not DTRN's), with histories as long as those of a batch of its rows. One
thread, all sides in turn.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.dtrn_loop import Loop, PlainTransformer
from benchmarks.measured import Aim, Figure, Spread, Times, as_markdown, interleave, ratios
from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.bottoms.conditions import HyperNetwork
from torchrec_mtl.bottoms.din import DIN
from torchrec_mtl.bottoms.dtrn import DTRN
from torchrec_mtl.bottoms.interest import Interest
from torchrec_mtl.config.load import load_config
from torchrec_mtl.embeddings import features_spec
from torchrec_mtl.features import Features, FeaturesSpec, Jagged
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.training.distributed import process_group

CONFIG = "examples/kuairand/dtrn.yaml"
PAIRS = ((1, 1), (3, 3), (6, 3))

# Shapes: B batch, K tasks, J sequences.


def read_lengths(path: Path, columns: Sequence[str], batch: int, longest: int) -> list[Tensor]:
    """Return J x [B], lengths of the histories of B rows spread over the file."""
    table = pq.read_table(path, columns=list(columns))
    rows = torch.linspace(0, len(table) - 1, batch).long().numpy()
    picked = table.take(rows)
    return [torch.tensor([min(len(x), longest) for x in picked[name].to_pylist()]) for name in columns]


def make_features(spec: FeaturesSpec, lengths: Sequence[Tensor]) -> Features:
    """Return embeddings drawn at random, leaves that ask for gradients as a table's outputs do."""
    batch = len(lengths[0])

    def drawn(rows: int, width: int) -> Tensor:
        return torch.empty(rows, width).uniform_(-0.01, 0.01).requires_grad_()

    return Features(
        fields={f.name: drawn(batch, f.dim) for f in spec.fields},
        sequences={s.name: Jagged(drawn(int(n.sum()), s.dim), n) for s, n in zip(spec.sequences, lengths, strict=True)},
        dense=torch.randn(batch, len(spec.dense)),
        spec=spec,
    )


def stepper(bottom: Bottom, features: Features, num_tasks: int) -> Callable[[], float]:
    """Return a function that trains a step and returns its milliseconds."""
    names = [f"t{k}" for k in range(num_tasks)]
    head = SharedBottom(bottom.out_features, names, SharedBottom.Config(shared=(), tower=(64, 32)))
    optimizer = torch.optim.Adam([*bottom.parameters(), *head.parameters()], fused=True)
    y = torch.randint(0, 2, (features.dense.shape[0],)).float()
    leaves = [*features.fields.values(), *(s.values for s in features.sequences.values())]

    def step() -> float:
        start = time.perf_counter()
        logits = head(bottom(features)).logits.values()
        losses = [torch.nn.functional.binary_cross_entropy_with_logits(z, y) for z in logits]
        optimizer.zero_grad()
        for leaf in leaves:
            leaf.grad = None
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return (time.perf_counter() - start) * 1000

    return step


def infer(bottom: Bottom, features: Features) -> Callable[[], float]:
    """Return a function that computes a representation without gradients and returns its milliseconds."""

    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            bottom(features)
        return (time.perf_counter() - start) * 1000

    return run


def dtrn(spec: FeaturesSpec, num_tasks: int) -> DTRN:
    """Return a DTRN with norms that differ by task and behaviour, as after some training."""
    bottom = DTRN(spec, tuple(f"t{k}" for k in range(num_tasks)), DTRN.Config())
    assert isinstance(bottom.interest, Interest), "the default"
    norms = bottom.interest.norms
    assert isinstance(norms, HyperNetwork), "the default"
    for parameter in norms.mlp[-1].parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return bottom


def with_interest(bottom: DTRN, interest: torch.nn.Module) -> DTRN:
    """Return a bottom like ``bottom``, with another module in place of its interest module."""
    made = copy.deepcopy(bottom)
    made.interest = interest
    return made


def measure(spec: FeaturesSpec, lengths: Sequence[Tensor], repeats: int) -> tuple[Times, Times]:
    """Return the times of training steps and of inference."""
    some = {j: FeaturesSpec(spec.fields, spec.sequences[:j], spec.dense) for _, j in PAIRS}
    features = {j: make_features(s, lengths[:j]) for j, s in some.items()}
    bottoms = {(k, j): dtrn(some[j], k) for k, j in PAIRS}
    ours = bottoms[3, 3]
    assert isinstance(ours.interest, Interest), "the default"
    loop, plain = with_interest(ours, Loop(ours.interest)), with_interest(ours, PlainTransformer(ours.interest))
    agree(loop(features[3]), ours(features[3]))
    sides = {f"DTRN ({k}, {j})": stepper(bottom, features[j], k) for (k, j), bottom in bottoms.items()}
    sides |= {
        "loop over pairs (3, 3)": stepper(loop, features[3], 3),
        "plain transformer, 3 sequences": stepper(plain, features[3], 3),
        "DIN, 3 sequences": stepper(DIN(spec, ("t",), DIN.Config()), features[3], 3),
        "pooled, 3 sequences": stepper(Concat(spec, ("t",), Concat.Config()), features[3], 3),
    }
    folded = ours.folded()
    agree(folded(features[3]), ours(features[3]))
    scoring = {"DTRN (3, 3)": infer(ours, features[3]), "DTRN (3, 3), norms folded": infer(folded, features[3])}
    return interleave(sides, repeats), interleave(scoring, repeats)


def agree(found: Representation, expected: Representation) -> None:
    """Stop where two that are compared do not compute the same."""
    torch.testing.assert_close(found.by_task(), expected.by_task(), rtol=1e-3, atol=1e-4)


def as_figures(steps: Times, scoring: Times) -> list[Figure]:
    """Return the lines of the table, with the aims of the design."""
    one, three = steps["DTRN (1, 1)"], steps["DTRN (3, 3)"]
    plain = steps["plain transformer, 3 sequences"]
    aims = {"DTRN (3, 3)": Aim("at most", 2.5)}
    loop_aim = Aim("at least", 2.0)
    figures = [
        Figure(name, Spread.of(found), "ms a step", ratios(found, one), "DTRN (1, 1)", aims.get(name))
        for name, found in steps.items()
    ]
    loop = steps["loop over pairs (3, 3)"]
    figures += [
        Figure("loop over pairs (3, 3)", Spread.of(loop), "ms a step", ratios(loop, three), "DTRN (3, 3)", loop_aim),
        Figure("DTRN (3, 3)", Spread.of(three), "ms a step", ratios(three, plain), "plain transformer, 3 sequences"),
    ]
    plainly, folded = scoring.values()
    return [*figures, Figure("scoring, norms folded", Spread.of(folded), "ms", ratios(folded, plainly), "not folded")]


def count(spec: FeaturesSpec, num_tasks: int, num_sequences: int, **options: str) -> int:
    """Return the parameters of DTRN."""
    some = FeaturesSpec(spec.fields, spec.sequences[:num_sequences], spec.dense)
    bottom = DTRN(some, tuple(f"t{k}" for k in range(num_tasks)), DTRN.Config.model_validate(options))
    return sum(p.numel() for p in bottom.parameters())


def parameters(spec: FeaturesSpec) -> str:
    """Return the table of parameters."""
    alone = {"refinement": "none"}
    rows = {
        "interest module, (3, 3)": count(spec, 3, 3, **alone),
        "one more task: its embedding": count(spec, 4, 3, **alone) - count(spec, 3, 3, **alone),
        "one more type of behaviour: its embedding": count(spec, 3, 3, **alone) - count(spec, 3, 2, **alone),
        "both modules, (3, 3)": count(spec, 3, 3),
        "one more task: its embedding and its gates": count(spec, 4, 3) - count(spec, 3, 3),
    }
    lines = ["| | parameters |", "| --- | ---: |", *(f"| {name} | {value:,} |" for name, value in rows.items())]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path, help="Parquet file whose histories give the lengths [the config's train]")
    options = parser.parse_args(arguments)
    config = load_config(CONFIG, [])
    spec = features_spec(config.features, "shared", config.task_names)
    path = options.data or Path(config.data.train[0])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    columns = [s.source for s in config.features.sequences]
    lengths = read_lengths(path, columns, options.batch, config.features.sequences[0].max_length)
    with process_group("cpu"):  # sets the allocator, as in a run
        figures = as_figures(*measure(spec, lengths, options.repeats))
    shown = ", ".join(f"{name} {n.float().mean():.1f}" for name, n in zip(columns, lengths, strict=True))
    machine = f"{platform.machine()}, one thread; torch {version('torch')}, torchrec {version('torchrec')}"
    print(as_markdown(f"batch {options.batch} (mean length: {shown}), {options.repeats} repeats, {machine}", figures))
    print(f"\n{parameters(spec)}")


if __name__ == "__main__":
    main()
