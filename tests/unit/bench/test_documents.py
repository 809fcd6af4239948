"""Markdown, HTML, and plots of one report."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pages import well_formed
from tests.unit.bench.suites import an_outcome, open_suite
from torchrec_mtl.bench.markdown import to_markdown
from torchrec_mtl.bench.page import to_html
from torchrec_mtl.bench.pareto import INK, front, plots
from torchrec_mtl.bench.results import make_report


@pytest.fixture
def outcomes(folder):
    _, pairs = open_suite(folder)
    made = [
        an_outcome(pair, [0.7 + i / 50, 0.71 + i / 40, None], score=0.7, samples_per_s=1.0)
        for i, pair in enumerate(pairs.values())
    ]
    row = made[1].seeds[2]
    made[1].seeds[2] = dataclasses.replace(row, error="ValueError: <b>a | b</b>\nsecond line")
    return made


@pytest.fixture
def report(folder, outcomes):
    return make_report(open_suite(folder)[0], outcomes)


def test_markdown_tables_have_as_many_cells_in_every_row(report):
    blocks = re.findall(r"(?:^\|.*\n)+", to_markdown(report), re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


def test_what_users_wrote_cannot_break_the_documents(report):
    assert "<b>" not in to_markdown(report)
    assert "<b>" not in to_html(report)
    assert "&lt;b&gt;a | b&lt;/b&gt;" in to_html(report)


def test_the_page_is_well_formed_and_needs_nothing_else(report):
    assert well_formed(to_html(report)).tags.count("svg") == 3


def test_drawings_take_the_page_s_ink(report):
    assert INK in report.sections[0].plots[0].svg
    assert f'"{INK}' not in to_html(report)
    assert f": {INK}" not in to_html(report).partition("</style>")[2]


def test_every_model_stands_in_every_document(report):
    for text in (to_markdown(report).replace("\\", ""), to_html(report)):
        assert all(name in text for name in ("single_task", "shared_bottom", "htlnet"))


def test_plots_are_drawings_of_every_two_tasks_and_the_same_each_time(outcomes):
    drawn = plots("planted", outcomes)
    assert [p.name for p in drawn] == [
        "planted-click-long_view.svg",
        "planted-click-watch_time.svg",
        "planted-long_view-watch_time.svg",
    ]
    assert all(ElementTree.fromstring(p.svg).tag.endswith("svg") for p in drawn)
    assert [p.svg for p in plots("planted", outcomes)] == [p.svg for p in drawn]


def test_without_results_nothing_is_drawn(outcomes):
    for outcome in outcomes:
        outcome.seeds = []
    assert plots("planted", outcomes) == []


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(points, st.sampled_from([1, -1]), st.sampled_from([1, -1]))
def test_the_front_is_what_no_other_point_beats(found, across, up):
    kept = set(front(found, signs=(across, up)))
    for i, (x, y) in enumerate(found):
        beaten = any((a - x) * across >= 0 and (b - y) * up >= 0 and (a, b) != (x, y) for a, b in found)
        assert (i in kept) != beaten
