"""The page of a run, from files as a training leaves them."""

import json
import math
import subprocess
import sys

import pytest

from tests.pages import well_formed
from tests.report_runs import line, lines, make_run, write_lines
from torchrec_mtl.report_page.page import write_page
from torchrec_mtl.report_page.run import page_of

FILES = ("metrics.json", "metrics.jsonl", "findings.json", "calibration.json", "ranks.json")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run <1>")


def test_the_page_is_well_formed_and_needs_nothing_else(run):
    page = well_formed(page_of(run))
    # Calibration and lift of one task; losses of two tasks and their sum, ne, rmse, speed; cosine and norm; ranks.
    assert page.tags.count("svg") == page.tags.count("figure") == 2 + 6 + 2 + 1
    # Metrics by kind, numbers of the lift, three findings, ranks and tables, tasks.
    assert page.tags.count("table") == 2 + 1 + 3 + 2 + 1


def test_links_lead_to_sections(run):
    page = page_of(run)
    links = well_formed(page).links
    assert len(links) == 7
    assert all(f'id="{link[1:]}"' in page for link in links)


def test_what_users_wrote_is_text(run):
    page = well_formed(page_of(run))
    assert not {"b", "i", "t", "read", "click", "head", "video"} & set(page.tags[2:])
    wanted = {"<b>", "kept <t>", "how to <read>", "1 & 2", "is_<click>", "play & time", "Run run <1>", "<video>"}
    assert wanted <= set(page.texts)


def test_head_and_metrics_are_shown_and_what_is_undefined_is_a_dash(run):
    texts = well_formed(page_of(run)).texts
    assert "head theirs:<Head>, bottom concat, gradient sum" in texts
    assert "binary tasks, eval data, step 1,200" in texts
    assert {"0.7694", "6,653", "118.2", "106,496", "0.250", "1.000"} <= set(texts)
    assert texts.count("-") == 6  # gauc, loss of watch, a cell of two findings, two ranks without a GPU


def test_heat_maps_are_coloured_by_value(run):
    text = page_of(run)
    assert '<td style="--of: 0.700">1.000</td>' in text
    assert '<td style="--of: 0.175">0.250</td>' in text
    assert '<td style="--of: 0">-</td>' in text


def test_each_rank_and_table_has_its_bytes(run):
    texts = well_formed(page_of(run)).texts
    assert texts.count("rank 0") == texts.count("rank 1") == 1
    assert {"31.2 KiB", "3.9 KiB", "2.0 KiB", "4.0 KiB", "5.0 GiB", "column_wise", "1,000 x 8", "62.5 KiB"} <= set(
        texts
    )


def test_lift_is_told_in_numbers(run):
    texts = well_formed(page_of(run)).texts
    first = texts.index("mean prediction")
    # Group, rows, mean prediction, mean label, half its interval, lift.
    assert texts[first:][4:10] == ["1", "6", "0.1000", "0.000", "0.000", "0.000"]


@pytest.mark.parametrize("name", FILES)
def test_an_absent_file_is_said_in_a_line(run, name):
    (run / name).unlink()
    assert any(text.startswith(f"There is no {name}: ") for text in well_formed(page_of(run)).texts)


def test_a_config_alone_is_a_page(run):
    for name in FILES:
        (run / name).unlink()
    page = well_formed(page_of(run))
    assert page.tags.count("table") == 1
    assert any("Nothing was logged of the tasks' gradients" in text for text in page.texts)


def test_lines_that_are_cut_short_and_values_that_are_missing_leave_gaps(run):
    entries = [*lines(), line(110, **{"train/loss/watch": math.nan}), line(120, **{"train/loss/watch": 0.4})]
    write_lines(run / "metrics.jsonl", entries)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 130, "train/lo')
    page = well_formed(page_of(run))
    assert page.tags.count("svg") == 11
    assert "training 0.4000" in page.texts
    assert not any("cannot be read" in text for text in page.texts)


def test_lines_that_are_damaged_are_counted_and_a_log_of_nothing_else_is_an_error(run):
    log = run / "metrics.jsonl"
    log.write_text('{"step": 5, "train/lo\n[]\n' + log.read_text())
    assert any(text.startswith("2 lines of ") and "metrics.jsonl cannot be read" in text for text in texts_of(run))
    log.write_text("\x00\x00\n{\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl does not hold the log of a run: none of its 2 lines"):
        page_of(run)


def texts_of(run):
    return well_formed(page_of(run)).texts


def test_an_empty_log_says_so(run):
    (run / "metrics.jsonl").write_text("")
    assert "metrics.jsonl is empty: nothing was logged yet." in texts_of(run)


def test_a_line_stands_where_a_phase_ended(run):
    before = page_of(run).count("stroke-dasharray")
    phased = [{**e, "train/phase": e["step"] // 55} if "train/loss/watch" in e else e for e in lines()]
    write_lines(run / "metrics.jsonl", [*phased, line(100, **{"prune/watch/density": 0.5, "prune/<b>/density": 0.4})])
    text = page_of(run)
    assert text.count("stroke-dasharray") == before + 9  # one a chart over steps, and the head's own
    texts = well_formed(text).texts
    assert any("a phase of training ended." in t for t in texts)
    assert {"Logged by the head", "prune density", "<b> 0.4000", "watch 0.5000"} <= set(texts)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run: config\.yaml is missing"):
        page_of(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"is not a run: its config\.yaml is of something else"):
        page_of(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "findings.json", "calibration.json", "ranks.json"])
@pytest.mark.parametrize(
    "content",
    ["", "[", "3", "null", '{"step": "x"}', '{"version": 9}', '{"version": 1, "tasks": {"a": [{}]}}', "[" * 10_000],
)
def test_a_damaged_file_is_named(run, name, content):
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        page_of(run)


@pytest.mark.parametrize("key", ["head", "tasks", "data"])
def test_a_config_of_another_shape_is_named(run, key):
    text = (run / "config.yaml").read_text().replace(f"{key}:", f"{key}: 3\nother_{key}:", 1)
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        page_of(run)


def change_group(run, **values):
    found = json.loads((run / "calibration.json").read_text())
    found["tasks"]["<b>"][0].update(values)
    (run / "calibration.json").write_text(json.dumps(found))


def test_a_run_that_left_all_bounds_has_a_page(run):
    extremes = [line(110, **{"train/loss/watch": 1e308}), line(120, **{"train/loss/watch": -1e308})]
    write_lines(run / "metrics.jsonl", [*lines(), *extremes])
    change_group(run, prediction=1e308)
    well_formed(page_of(run))


def test_numbers_too_large_to_reckon_with_are_an_error_that_names_the_run(run):
    change_group(run, rows=10**400)
    with pytest.raises(ValueError, match=r"run <1> does not hold what a training writes"):
        page_of(run)


def test_the_page_lies_in_the_run_or_where_asked(run, tmp_path):
    assert write_page([run]) == run / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_page([run], elsewhere).read_text() == (run / "report.html").read_text()


def test_a_long_log_makes_a_small_page(run):
    keys = [f"train/gradient/weight/task {i}" for i in range(20)]
    with (run / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line(s, **dict.fromkeys(keys, s % 97 / 97))) + "\n" for s in range(20_000))
    text = page_of(run)
    assert len(text) < 1_000_000
    well_formed(text)


def test_torch_is_not_imported(run):
    script = (
        "import sys; from torchrec_mtl.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "report", str(run)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report written to {run / 'report.html'}\n"
