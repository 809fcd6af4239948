"""How much of TorchRec's own training script changes for a head of ours: counted, and shown in the docs as it is."""

import ast
import difflib
import re

from tests.embed_examples import EXAMPLES

MOST = 15


def code(name):
    """The lines of a script below its docstring."""
    text = (EXAMPLES / name).read_text()
    return text.splitlines()[ast.parse(text).body[0].end_lineno :]


def changed(before, after):
    """Lines that differ, blank ones aside; a line put in the place of another counts once."""
    count = 0
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes():
        if tag != "equal":
            count += max(sum(map(bool, map(str.strip, part))) for part in (before[i1:i2], after[j1:j2]))
    return count


def test_at_most_fifteen_lines_change():
    assert 0 < changed(code("dlrm.py"), code("embed_in_dlrm.py")) <= MOST


def test_changed_lines_are_counted():
    assert changed(["a", "b", "c"], ["a", "x", "y", "", "c", "d"]) == 3
    assert changed(["a", "b"], ["a"]) == 1
    assert changed(["a"], ["a"]) == 0


def test_the_docs_show_the_difference_as_it_is():
    [shown] = re.findall(r"```diff\n(.*?)```", (EXAMPLES.parent / "docs" / "embed.md").read_text(), re.DOTALL)
    diff = list(difflib.unified_diff(code("dlrm.py"), code("embed_in_dlrm.py"), n=1, lineterm=""))[2:]
    assert [line for line in shown.splitlines() if not line.startswith("@@")] == [
        line for line in diff if not line.startswith("@@")
    ]
    count = changed(code("dlrm.py"), code("embed_in_dlrm.py"))
    assert f"{count} lines change" in (EXAMPLES.parent / "docs" / "embed.md").read_text()
    assert f"by {count} changed lines" in (EXAMPLES.parent / "README.md").read_text()


def test_the_scripts_name_no_yaml_and_little_else_of_ours():
    for name, modules in (("dlrm.py", set()), ("embed_in_dlrm.py", {"torchrec_mtl"})):
        text = (EXAMPLES / name).read_text()
        found = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
        assert {m for m in found if m.startswith("torchrec_mtl")} == modules
        assert "yaml" not in "\n".join(code(name)).lower()
