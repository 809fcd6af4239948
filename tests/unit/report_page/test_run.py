"""The page of a run, from files as a training leaves them."""

import json
import math
import subprocess
import sys

import pytest
import yaml

from tests.pages import well_formed
from torchrec_mtl.findings import MatrixFinding, TableFinding
from torchrec_mtl.report_page.run import page_of, write_page
from torchrec_mtl.training.findings import save_findings

CONFIG = {
    "data": {"train": ["a.parquet"], "eval": ["b.parquet"], "test": None},
    "tasks": [
        {"name": "<b>", "kind": "binary", "label": "is_<click>", "space": None},
        {"name": "watch", "kind": "regression", "label": "play & time", "space": "is_click"},
    ],
    "bottom": {"type": "concat"},
    "head": {"type": "theirs:<Head>"},
    "gradient": {"type": "sum"},
    "train": {"epochs": 2, "seed": 3},
    "run_dir": "runs/<i>",
}
METRICS = {
    "step": 1200,
    "tasks": {
        "<b>": {"count": 6653.0, "auc": 0.76936, "gauc": None, "loss": 0.5},
        "watch": {"count": 12.0, "rmse": 118.25, "loss": math.nan},
    },
}
FINDINGS = (
    TableFinding("kept <t>", ("layer", "<b>"), (("1 & 2", 106496), ("all", math.nan)), "how to <read>"),
    MatrixFinding("Jaccard", ("<b>", "watch"), ("<b>", "watch"), ((1.0, 0.25), (math.nan, 1.0))),
    MatrixFinding("other", ("<b>",), ("watch",), ((0.5,),)),
)


def line(step, **values):
    return {"step": step, "time": 1.0, **values}


def lines():
    for step in range(10, 110, 10):
        yield line(
            step,
            **{
                "train/loss/<b>": 1 / step,
                "train/loss/watch": 0.5,
                "train/window/<b>/ne": 1.0 + 1 / step,
                "train/samples_per_s": 1e4,
                "train/gradient/norm/<b>": 0.5,
            },
        )
        if step % 50 == 0:
            yield line(step, **{"eval/<b>/loss": 0.7, "eval/<b>/ne": 0.9, "eval/watch/rmse": 2.0, "eval/loss": 1.0})


def write_lines(path, written):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in written))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run <1>"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    write_lines(folder / "metrics.jsonl", lines())
    save_findings(folder / "findings.json", FINDINGS)
    return folder


def test_the_page_is_well_formed_and_needs_nothing_else(run):
    page = well_formed(page_of(run))
    # Losses of two tasks and their sum, ne and rmse, a norm and the speed.
    assert page.tags.count("svg") == page.tags.count("figure") == 7
    assert page.tags.count("table") == 2 + 1 + 2 + 1


def test_what_users_wrote_is_text(run):
    page = well_formed(page_of(run))
    assert not {"b", "i", "t", "read", "click", "head"} & set(page.tags[2:])
    assert {"<b>", "kept <t>", "how to <read>", "1 & 2", "is_<click>", "play & time", "Run run <1>"} <= set(page.texts)


def test_head_and_metrics_are_shown_and_what_is_undefined_is_a_dash(run):
    texts = well_formed(page_of(run)).texts
    assert "head theirs:<Head>, bottom concat, gradient sum" in texts
    assert "binary tasks, eval data, step 1,200" in texts
    assert {"0.7694", "6,653", "118.2", "106,496", "0.250", "1.000"} <= set(texts)
    assert texts.count("-") == 4  # gauc, loss of watch, a cell of each finding


def test_heat_maps_are_coloured_by_value(run):
    text = page_of(run)
    assert '<td style="--of: 0.700">1.000</td>' in text
    assert '<td style="--of: 0.175">0.250</td>' in text
    assert '<td style="--of: 0">-</td>' in text


@pytest.mark.parametrize("name", ["metrics.json", "metrics.jsonl", "findings.json"])
def test_an_absent_file_is_said_in_a_line(run, name):
    (run / name).unlink()
    assert any(text.startswith(f"There is no {name}: ") for text in well_formed(page_of(run)).texts)


def test_a_config_alone_is_a_page(run):
    for name in ("metrics.json", "metrics.jsonl", "findings.json"):
        (run / name).unlink()
    assert well_formed(page_of(run)).tags.count("table") == 1


def test_lines_that_are_cut_short_and_values_that_are_missing_leave_gaps(run):
    entries = [*lines(), line(110, **{"train/loss/watch": math.nan}), line(120, **{"train/loss/watch": 0.4})]
    write_lines(run / "metrics.jsonl", entries)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 130, "train/lo')
    page = well_formed(page_of(run))
    assert page.tags.count("svg") == 7
    assert "training 0.4000" in page.texts


def test_an_empty_log_says_so(run):
    (run / "metrics.jsonl").write_text("")
    assert "metrics.jsonl is empty: nothing was logged yet." in well_formed(page_of(run)).texts


def test_a_line_stands_where_a_phase_ended(run):
    assert "stroke-dasharray" not in page_of(run)
    phased = [{**e, "train/phase": e["step"] // 55} if "train/loss/watch" in e else e for e in lines()]
    write_lines(run / "metrics.jsonl", [*phased, line(100, **{"prune/watch/density": 0.5, "prune/<b>/density": 0.4})])
    text = page_of(run)
    assert text.count("stroke-dasharray") == 8  # one a chart
    assert "Dotted line: a phase of training ended." in text
    assert {"Logged by the head", "prune density", "<b> 0.4000", "watch 0.5000"} <= set(well_formed(text).texts)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run: config\.yaml is missing"):
        page_of(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"is not a run: its config\.yaml is of something else"):
        page_of(tmp_path)


def test_damaged_metrics_are_named(run):
    (run / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match=r"metrics\.json does not hold the metrics"):
        page_of(run)


def test_the_page_lies_in_the_run_or_where_asked(run, tmp_path):
    assert write_page(run) == run / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_page(run, elsewhere).read_text() == (run / "report.html").read_text()


def test_torch_is_not_imported(run):
    script = (
        "import sys; from torchrec_mtl.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "report", str(run)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report written to {run / 'report.html'}\n"
