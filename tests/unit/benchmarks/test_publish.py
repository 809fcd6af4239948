"""The page keeps what was written by hand and shows the latest tables and plots."""

import pytest

from benchmarks.publish import MARK, publish


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "table.md").write_text("# Suite\n\n## cdnow\n\n| a |\n| --- |\n\n![a against b](cdnow-a-b.svg)\n")
    (folder / "cdnow-a-b.svg").write_text("<svg/>")
    return folder


def test_tables_and_plots_take_the_place_of_the_old_ones(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# By hand\n\nWords.\n\n{MARK}\n\nold table\n")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "old.svg").write_text("old")
    assert publish([results], page) == [tmp_path / "page" / "cdnow-a-b.svg"]
    text = page.read_text()
    assert text.startswith("# By hand\n\nWords.\n\n")
    assert "old table" not in text
    assert "### cdnow" in text
    assert "![a against b](page/cdnow-a-b.svg)" in text
    assert [p.name for p in (tmp_path / "page").iterdir()] == ["cdnow-a-b.svg"]
    publish([results], page)
    assert page.read_text() == text


def test_several_suites_stand_one_after_the_other(results, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "table.md").write_text("# Second\n\n![x](y.svg)\n")
    (other / "y.svg").write_text("<svg/>")
    page = tmp_path / "page.md"
    page.write_text(MARK)
    assert publish([results, other], page) == [tmp_path / "page" / name for name in ("cdnow-a-b.svg", "y.svg")]
    text = page.read_text()
    assert text.index("## Suite") < text.index("## Second")
    assert "![x](page/y.svg)" in text


def test_another_table_without_plots_needs_no_folder(results, tmp_path):
    (results / "questions.md").write_text("# Answers\n")
    page = tmp_path / "page.md"
    page.write_text(MARK)
    assert publish([results], page, "questions.md") == []
    assert "## Answers" in page.read_text()
    assert not (tmp_path / "page").exists()


def test_what_is_missing_is_said(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no mark")
    with pytest.raises(ValueError, match="has no line"):
        publish([results], page)
    with pytest.raises(ValueError, match="run the bench first"):
        publish([tmp_path], page)
