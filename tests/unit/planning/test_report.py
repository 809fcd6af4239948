"""The report in all its forms: text, JSON and back, picture, growth."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.unit.planning.configs import CPU, GPUS, config, planned
from torchrec_mtl.planning.fit import mend
from torchrec_mtl.planning.growth import grow
from torchrec_mtl.planning.plot import draw
from torchrec_mtl.planning.report import Report, from_json, to_json
from torchrec_mtl.planning.result import Cluster, Shortage
from torchrec_mtl.planning.solve import solve
from torchrec_mtl.planning.text import columns, render


@pytest.fixture(scope="module")
def fits() -> Report:
    run = config(rows={"user": 3_000_000}, dim=16)
    plan = planned(run, GPUS)
    growth = grow(run, GPUS, (1, 2, 3), plan, lambda _: None)
    return Report("a.yaml", 64, GPUS, plan, growth=growth, notes=("mind the gap",))


@pytest.fixture(scope="module")
def mended() -> Report:
    run = config("cpu", rows={"user": 200_000_000})
    cluster = Cluster(1, 2, "cpu", None, 8.0)
    shortage = solve(run, cluster)
    assert isinstance(shortage, Shortage)
    found = mend(run, shortage)
    return Report("a.yaml", 64, cluster, None, shortage, found.attempts, found.plan)


def test_json_gives_the_report_back(fits: Report, mended: Report) -> None:
    for report in (fits, mended):
        assert from_json(to_json(report)) == report
    raw = json.loads(to_json(fits))
    assert raw["plan"]["summary"]["step_ms"] == fits.plan.summary.step_ms  # type: ignore[union-attr]
    assert raw["plan"]["ranks"][3]["node"] == 1


def test_growth_has_a_line_for_each_number_of_nodes(fits: Report) -> None:
    one, two, three = fits.growth
    assert (one.ranks, one.batch_per_rank, two.batch_per_rank) == (2, 32, 16)
    assert fits.plan is not None
    assert two.step_ms == fits.plan.summary.step_ms
    assert two.seconds == fits.plan.seconds  # taken over, not planned again
    alone = planned(config(rows={"user": 3_000_000}, dim=16), replace(GPUS, nodes=1))
    assert one.step_ms == pytest.approx(alone.summary.step_ms)
    assert one.hbm_bytes == max(r.hbm_bytes for r in alone.ranks)
    assert three.step_ms is None
    assert "64 cannot be shared by 6 ranks" in three.reason


def test_the_text_has_a_line_a_rank_and_says_what_the_figures_are(fits: Report) -> None:
    text = render(fits)
    assert "TorchRec's estimates for its default hardware constants" in text
    assert "nothing was measured" in text
    assert fits.plan is not None
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("rank  node"))
    assert [line.split()[:2] for line in lines[head + 2 : head + 6]] == [["0", "0"], ["1", "0"], ["2", "1"], ["3", "1"]]
    assert f"a step of the tables: {fits.plan.summary.step_ms:.3g} ms" in text
    assert "3,000,000" in text
    assert "note: mind the gap" in text


def test_long_names_are_short_in_the_text_and_whole_in_json(fits: Report) -> None:
    name = "a_table_with_a_name_that_goes_on"
    assert fits.plan is not None
    tables = (replace(fits.plan.tables[0], name=name), *fits.plan.tables[1:])
    ranks = tuple(replace(rank, tables=(name, *rank.tables[1:])) for rank in fits.plan.ranks)
    report = replace(fits, plan=replace(fits.plan, tables=tables, ranks=ranks))
    assert name not in render(report)
    assert "a_table..oes_on" in render(report)
    assert to_json(report).count(f'"{name}"') == 5


def test_a_shortage_names_table_memory_and_change(mended: Report) -> None:
    text = render(mended)
    assert "does not fit: user fits on no rank" in text
    assert "user: its largest part needs 6.7 GiB of host memory (a rank has 4.0 GiB); table_wise" in text
    assert "the cheapest that fits: 16 GiB a node of host memory" in text
    assert "--ddr-gib 16" in text
    assert "with that change, on 1 node x 2 CPU ranks, 16 GiB a node" in text


def test_columns_are_aligned() -> None:
    assert columns(("a", "b", "c"), [("x", "10", "why"), ("yy", "2", "")]) == ["a    b  c", "x   10  why", "yy   2"]


def test_the_plot_is_a_picture(fits: Report, mended: Report, tmp_path: Path) -> None:
    sizes = []
    for report, file in ((fits, tmp_path / "fits.png"), (mended, tmp_path / "mended.png")):
        draw(report, file)
        pixels = imread(file)
        assert pixels[..., :3].std() > 0.05  # not blank
        sizes.append(pixels.shape[0])
    assert sizes[0] > 1.5 * sizes[1]  # growth has a row of its own


def test_nothing_to_draw_is_said(mended: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--plot: nothing fits"):
        draw(replace(mended, changed=None), tmp_path / "none.png")


def test_a_model_without_tables_has_an_empty_plan(tmp_path: Path) -> None:
    made = config("cpu").features.model_copy(update={"tables": (), "sparse": (), "sequences": ()})
    plan = planned(config("cpu").model_copy(update={"features": made}), CPU)
    assert (plan.tables, plan.summary.step_ms, plan.summary.time_imbalance) == ((), 0.0, 1.0)
    report = Report("a.yaml", 64, CPU, plan)
    draw(report, tmp_path / "empty.png")
    assert "fits: 2 ranks" in render(report)
