import io
import json
import math

import pytest
from rich.console import Console

from torchrec_mtl.findings import MatrixFinding, TableFinding
from torchrec_mtl.training.findings import load_findings, save_findings, show_findings

TABLE = TableFinding(
    "Connections [of] tasks",
    ("layer", "kept", "density"),
    (("layer 1 (720 x 512)", 106496, 0.2), ("all", 3, 0.000123456)),
    "how [bold]to[/bold] read",
)
MATRIX = MatrixFinding("Jaccard", ("click", "buy"), ("click", "buy"), ((1.0, 1 / 9), (1 / 9, 1.0)))


def test_findings_come_back_as_they_were(tmp_path):
    path = tmp_path / "findings.json"
    save_findings(path, (TABLE, MATRIX))
    assert load_findings(path) == (TABLE, MATRIX)
    assert [plain["kind"] for plain in json.loads(path.read_text())] == ["table", "matrix"]


def test_nan_is_null_in_the_file_and_nan_again_when_read(tmp_path):
    path = tmp_path / "findings.json"
    save_findings(path, [MatrixFinding("m", ("a",), ("b",), ((math.nan,),))])
    assert json.loads(path.read_text())[0]["values"] == [[None]]
    [found] = load_findings(path)
    assert isinstance(found, MatrixFinding)
    assert math.isnan(found.values[0][0])


def test_no_findings_are_an_empty_file(tmp_path):
    save_findings(tmp_path / "f.json", ())
    assert load_findings(tmp_path / "f.json") == ()


@pytest.mark.parametrize("text", ["", "[", "3", '{"kind": "table"}', '[{"kind": "graph"}]', '[{"kind": "table"}]'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "findings.json").write_text(text)
    with pytest.raises(ValueError, match=r"findings\.json does not hold findings"):
        load_findings(tmp_path / "findings.json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"values": [[1.0, 0.5]]},
        {"values": [[1.0], [0.5]]},
        {"values": [[1.0, "x"], [0.5, 1.0]]},
        {"rows": ["click", 3]},
        {"title": ["a"]},
    ],
)
def test_a_finding_of_another_shape_is_refused_by_the_name_of_its_file(tmp_path, wrong):
    path = tmp_path / "findings.json"
    save_findings(path, [MATRIX])
    path.write_text(json.dumps([{**json.loads(path.read_text())[0], **wrong}]))
    with pytest.raises(ValueError, match=r"findings\.json does not hold findings"):
        load_findings(path)


def test_tables_are_printed_whole_where_there_is_no_terminal():
    out = io.StringIO()
    show_findings(Console(file=out, width=80), (TABLE, MATRIX))
    lines = out.getvalue().splitlines()
    assert "Connections [of] tasks" in lines[0]
    assert any("layer 1 (720 x 512) │ 106,496 │    0.2000" in line for line in lines)
    assert any("0.0001235" in line for line in lines)
    assert "how [bold]to[/bold] read" in out.getvalue()
    assert "Jaccard" not in out.getvalue()  # the report draws it


def test_a_table_without_rows_is_printed():
    out = io.StringIO()
    show_findings(Console(file=out, width=80), [TableFinding("empty", ("a", "b"), ())])
    assert "empty" in out.getvalue()
