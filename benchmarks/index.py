r"""How fast an item index is built and searched, how much it finds, and how large it is; a table of kinds a size.

    python -m benchmarks.index [--sizes 10000 100000 1000000] [--dim 65] [--queries 1000] [--k 100] [--spread 0.5]

Vectors resemble those of a trained student: clusters of different sizes, lengths that vary (``--spread``: standard
deviation of their logarithm), and a bias as the last coordinate. Queries come from the same clusters, one for each of
two tasks. One thread, all settings in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.measured import Spread, interleave
from torchrec_mtl.bench.machine import machine
from torchrec_mtl.retrieval.index import IndexOptions, ItemIndex

Floats = npt.NDArray[np.float32]

TASKS = ("click", "purchase")
KINDS = ("flat", "ivf", "hnsw")
# How hard a search looks, by kind; the defaults are among them.
EFFORTS: dict[str, tuple[dict[str, int], ...]] = {
    "flat": ({},),
    "ivf": ({"probes": 16}, {"probes": 64}, {"probes": 256}),
    "hnsw": ({"ef_search": 64}, {"ef_search": 128}, {"ef_search": 256}),
}

# Shapes: N items, D width of vectors, B queries, K tasks.


@dataclass(frozen=True)
class Built:
    """An index, how long it took, and how large its file of vectors is."""

    index: ItemIndex
    seconds: float
    num_bytes: int

    @classmethod
    def of(cls, vectors: Floats, options: IndexOptions) -> Built:
        """Build an index of vectors [N, D]."""
        ids = pa.array(np.arange(len(vectors)))
        start = time.perf_counter()
        index = ItemIndex.build(ids, vectors, TASKS, options)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder) / "index")
            return cls(index, seconds, (Path(folder) / "index" / "index.faiss").stat().st_size)


def make_data(
    num_items: int, dim: int, num_queries: int, *, spread: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return vectors [N, D] and queries [B, K, D] with a bias and its 1 as their last coordinates."""
    num_clusters = max(1, round(num_items**0.5))
    centres = rng.standard_normal((num_clusters, dim - 1), np.float32) / np.float32((dim - 1) ** 0.5)
    popularity = np.arange(1, num_clusters + 1) ** -0.7
    popularity /= popularity.sum()

    def draw(count: int, noise: float) -> Floats:
        near = centres[rng.choice(num_clusters, count, p=popularity)]
        near += np.float32(noise / (dim - 1) ** 0.5) * rng.standard_normal((count, dim - 1), np.float32)
        return near

    vectors = np.empty((num_items, dim), np.float32)
    vectors[:, :-1] = draw(num_items, 0.6) * np.exp(spread * rng.standard_normal((num_items, 1), np.float32))
    vectors[:, -1] = 0.3 * rng.standard_normal(num_items, np.float32)
    queries = np.empty((num_queries, len(TASKS), dim), np.float32)
    user = draw(num_queries, 0.8)
    for task in range(len(TASKS)):  # a user's tasks ask for similar items, not for the same
        queries[:, task, :-1] = 2 * (user + draw(num_queries, 0.8) / 4)
        queries[:, task, -1] = 0.5
    return vectors, queries


def searcher(index: ItemIndex, effort: dict[str, int], queries: Floats, k: int) -> Callable[[], float]:
    """Return a function that searches and returns queries a second."""

    def search() -> float:
        index.tune(**effort)
        start = time.perf_counter()
        index.search(queries, k)
        return len(queries) / (time.perf_counter() - start)

    return search


def measure(vectors: Floats, queries: Floats, k: int, *, kinds: Sequence[str], repeats: int, seed: int) -> list[str]:
    """Return the lines of the table of one size."""
    options = {kind: IndexOptions(kind, seed=seed if kind == "ivf" else None) for kind in kinds}  # type: ignore[arg-type]
    built = {kind: Built.of(vectors, options[kind]) for kind in kinds}
    settings = {name_of(kind, effort): (built[kind], effort) for kind in kinds for effort in EFFORTS[kind]}
    speeds = interleave({name: searcher(b.index, e, queries, k) for name, (b, e) in settings.items()}, repeats)
    lines = [
        "| kind | build s | queries/s, one thread | recall | size MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, (found, effort) in settings.items():
        found.index.tune(**effort)
        recall = found.index.recall(queries, k)
        speed = Spread.of(speeds[name])
        lines.append(f"| {name} | {found.seconds:.1f} | {speed} | {recall:.3f} | {found.num_bytes / 1e6:.1f} |")
    return lines


def name_of(kind: str, effort: dict[str, int]) -> str:
    """Return the name of a row."""
    return " ".join([kind, *(f"{setting}={value}" for setting, value in effort.items())])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=65)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    faiss.omp_set_num_threads(1)
    print(
        f"D = {options.dim}, {options.queries} queries, k = {options.k}, spread {options.spread}, seed {options.seed}"
    )
    print(f"{options.repeats} repeats: median (lowest to highest). {machine()}")
    print(", ".join(f"{name} {version(name)}" for name in ("faiss-cpu", "numpy", "pyarrow")))
    for size in options.sizes:
        rng = np.random.default_rng([options.seed, size])
        vectors, queries = make_data(size, options.dim, options.queries, spread=options.spread, rng=rng)
        lines = measure(vectors, queries, options.k, kinds=options.kinds, repeats=options.repeats, seed=options.seed)
        print(f"\n### {size:,} items\n\n" + "\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
