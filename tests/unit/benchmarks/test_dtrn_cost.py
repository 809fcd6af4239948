"""The benchmark of DTRN's cost: what it is compared with computes the same, and its tables hold what was counted."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.dtrn_cost import count, dtrn, main, make_features, with_interest
from benchmarks.dtrn_loop import Loop
from torchrec_mtl.features import DenseSpec, FeaturesSpec, FieldSpec

ROOT = Path(__file__).parents[3]
SPEC = FeaturesSpec(
    fields=(FieldSpec("video", 8, "item", "video"),),
    sequences=tuple(
        FieldSpec(name, 8, "user", "video", behavior=name, target="video", max_length=6)
        for name in ("watched", "liked")
    ),
    dense=(DenseSpec("age", "user"),),
)
LENGTHS = [torch.tensor([0, 1, 6, 3, 0]), torch.tensor([2, 0, 5, 6, 0])]


def test_the_loop_over_pairs_computes_what_dtrn_does():
    torch.manual_seed(0)
    features = make_features(SPEC, LENGTHS)
    bottom = dtrn(SPEC, 3)
    looped = with_interest(bottom, Loop(bottom.interest))
    found, expected = looped(features).by_task(), bottom(features).by_task()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (expected[0] != expected[1]).any(), "norms that do not differ would let a wrong loop pass"


def test_a_task_costs_its_embedding_and_its_gates():
    alone = {"refinement": "none"}
    assert count(SPEC, 4, 2, **alone) - count(SPEC, 3, 2, **alone) == 16
    gates = 4 * 1 + 1 + 1 * 4 + 4  # four fields (video, two sequences, age) to one unit, and back
    assert count(SPEC, 4, 2) - count(SPEC, 3, 2) == 16 + gates


def test_it_prints_both_tables(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 9, n).tolist() for n in rng.integers(0, 6, 16)]
    pq.write_table(pa.table(dict.fromkeys(("watched", "liked", "long_watched"), lists)), tmp_path / "rows.parquet")
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    try:
        main(["--batch", "8", "--repeats", "1", "--data", str(tmp_path / "rows.parquet")])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "| loop over pairs (3, 3) | " in printed
    assert "| DTRN (6, 3) | " in printed
    assert "| one more task: its embedding | 16 |" in printed
