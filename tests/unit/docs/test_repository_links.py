"""Links that work on a code host work in the site."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason='pip install "torchrec_mtl[docs]"')

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("repository", ROOT / "docs" / "hooks" / "repository.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(hook, markdown, page="config.md", known=("heads.md", "examples/cdnow/README.md", "index.md")):
    files = SimpleNamespace(get_file_from_path=lambda path: SimpleNamespace(src_uri=path) if path in known else None)
    return hook.on_page_markdown(markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)), files=files)


@pytest.mark.parametrize(
    ("page", "written", "read_as"),
    [
        ("config.md", "[a](heads.md#norms)", "[a](heads.md#norms)"),
        ("config.md", "[a](../examples/cdnow/README.md)", "[a](examples/cdnow/README.md)"),
        ("howto/dtrn.md", "[a](../heads.md)", "[a](../heads.md)"),
        ("examples/multinode/README.md", "[a](../cdnow/README.md)", "[a](../cdnow/README.md)"),
        ("examples/multinode/README.md", "[a](../../docs/heads.md#norms)", "[a](../../heads.md#norms)"),
        ("config.md", "[a](../docker)", "a (`docker/`)"),
        ("config.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("config.md", "[a](nowhere.md)", "[a](nowhere.md)"),  # left to MkDocs, which warns
        ("config.md", "```text\n[a](../docker)\n```", "```text\n[a](../docker)\n```"),
    ],
)
def test_a_link_leads_to_where_its_target_is_in_the_site(hook, page, written, read_as):
    assert read(hook, written, page) == read_as


def test_a_list_may_follow_a_paragraph_at_once(hook):
    assert read(hook, "Text:\n* one\n  more\n* two") == "Text:\n\n* one\n  more\n* two"
    assert read(hook, "Text:\n\n* one\n* two") == "Text:\n\n* one\n* two"
    assert read(hook, "```text\nText:\n* one\n```") == "```text\nText:\n* one\n```"
