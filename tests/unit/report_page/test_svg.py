"""Charts as drawings: where lines run, and what they leave out."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.report_page.svg import Curve, figure, ticks


def paths(drawn):
    found = re.findall(r'points="([^"]*)"', drawn)
    return [[tuple(map(float, point.split(","))) for point in path.split()] for path in found]


def test_higher_values_are_drawn_higher_and_later_steps_to_the_right():
    [[a, b, c]] = paths(figure("loss", [Curve("click", 1, ((10, 0.7), (20, 0.5), (30, 0.6)))]))
    assert a[0] < b[0] < c[0]
    assert a[1] < c[1] < b[1]  # down is larger


def test_a_curve_is_cut_at_gaps_and_at_phases():
    curve = Curve("click", 1, ((1, 0.5), (2, 0.4), (3, math.nan), (4, 0.3), (5, 0.2), (6, 0.1), (7, math.inf)))
    assert [len(path) for path in paths(figure("loss", [curve], phases=[5]))] == [2, 2, 1]


def test_an_area_has_the_gaps_of_its_curve_and_reaches_its_last_point():
    points = tuple((s, math.nan if s == 1_000 else 1.0) for s in range(2_000))
    band = tuple((s, v - 0.5, v + 0.5) for s, v in points)
    drawn = figure("loss", [Curve("click", 1, points, faint=True, band=band)])
    areas = [paths(area)[0] for area in re.findall(r"<polygon [^>]*>", drawn)]
    lines = [paths(line)[0] for line in re.findall(r"<polyline [^>]*>", drawn)]
    assert len(areas) == len(lines) == 2
    assert [max(x for x, _ in area) for area in areas] == pytest.approx([line[-1][0] for line in lines], abs=0.5)


@pytest.mark.parametrize("values", [(1e308, -1e308, 0.5), (1e308, 0.5, 0.25), (math.inf, 0.5, 0.25)])
def test_numbers_that_no_chart_has_a_place_for_are_gaps(values):
    drawn = figure("loss", [Curve("click", 1, tuple(enumerate(values, 1)))])
    assert sum(map(len, paths(drawn))) == sum(abs(v) < 1e100 for v in values)
    assert not {"nan", "inf"} & set(re.findall(r"nan|inf", drawn))


def test_nothing_is_drawn_of_nothing():
    assert figure("loss", [Curve("click", 1, ())]) == ""
    assert figure("loss", [Curve("click", 1, ((1, math.nan),))]) == ""


def test_a_single_and_a_constant_value_are_drawn():
    for points in (((0, 0.0),), ((5, 3.0), (6, 3.0))):
        drawn = figure("loss", [Curve("click", 1, points)])
        assert drawn.count("<circle") == len(points)
        assert "nan" not in drawn


def test_long_curves_keep_their_extremes_and_few_points():
    points = tuple((step, math.sin(step / 3000)) for step in range(100_000))
    spiked = (*points[:5000], (5000, 9.0), *points[5001:])
    [path] = paths(figure("loss", [Curve("click", 1, spiked, faint=True)]))
    assert len(path) < 1300
    assert min(y for _, y in path) < 30  # the spike, near the top
    assert all(a[0] <= b[0] for a, b in pairwise(path))


def test_the_legend_names_each_curve_once_with_the_last_value_of_the_evaluation():
    drawn = figure("ne", [Curve("<b>", 1, ((1, 0.5),), faint=True), Curve("<b>", 1, ((1, 0.25), (2, 0.125)))])
    assert drawn.count("class=key") == 1
    assert "&lt;b&gt; 0.1250</span>" in drawn


def test_drawings_are_xml_apart_from_html_s_bare_attributes():
    drawn = figure("a < b", [Curve("click & buy", 1, ((10, 0.7), (20, 0.5)))], phases=[10])
    assert ElementTree.fromstring(drawn.replace("class=key", 'class="key"')).tag == "figure"


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low, width):
    high = low + width
    if high - low < 1e-6 * abs(low):
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 * width <= t <= high + 1e-6 * width for t in found)
