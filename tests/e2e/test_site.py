"""The documentation site: built with every warning an error, every page found, the API complete, nothing fetched."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torchrec_mtl
from torchrec_mtl import registry, testing

pytest.importorskip("mkdocs", reason='pip install "torchrec_mtl[docs]"')

ROOT = Path(__file__).resolve().parents[2]
_CODE = re.compile(r"<(code|pre|script|style)\b.*?</\1>", re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Page -> its HTML."""
    return {
        page.relative_to(site).as_posix(): page.read_text(encoding="utf-8")
        for page in site.rglob("*.html")
        if page.name != "404.html"
    }


def article(page):
    return page[page.index("<article") : page.index("</article>")]


def test_every_document_is_a_page_and_in_the_navigation(pages):
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    documents |= {path.relative_to(ROOT).with_name("index.html") for path in ROOT.glob("examples/*/README.md")}
    documents |= {Path("CONTRIBUTING.html"), Path("CHANGELOG.html")}
    assert set(pages) == {path.as_posix() for path in documents}
    start = pages["index.html"]
    navigation = set(re.findall(r'href="([^"#]+)" class="md-nav__link"', start[: start.index("<article")]))
    assert {path.as_posix() for path in documents} - navigation <= {"index.html"}


def test_links_and_pictures_of_the_site_are_there(site, pages):
    for name, page in pages.items():
        for target in re.findall(r'(?:href|src)="([^"]+)"', article(page)):
            if not re.match(r"https?:|mailto:|#|data:", target):
                path = ((site / name).parent / html.unescape(target).split("#")[0]).resolve()
                assert path.is_file(), f"{name}: {target}"


def test_all_that_is_public_is_on_an_api_page(pages):
    api = "".join(page for name, page in pages.items() if name.startswith("api/"))
    wanted = {f"torchrec_mtl.{name}" for name in torchrec_mtl.__all__ if name != "__version__"}
    wanted |= {f"torchrec_mtl.testing.{name}" for name in testing.__all__}
    exported = {f"torchrec_mtl.{module}:{name}" for name, module in torchrec_mtl._PUBLIC.items()}
    built_in = {path for classes in registry.BUILT_IN.values() for path in classes.values()}
    wanted |= {path.replace(":", ".") for path in built_in - exported}
    # What plug-ins of others meet, and pages name.
    wanted |= {"torchrec_mtl.heads.watched.WatchedGate", "torchrec_mtl.training.sinks.MetricSink"}
    assert [name for name in sorted(wanted) if f'id="{name}"' not in api] == []


def test_docstrings_are_read_as_they_are_meant(pages):
    heads = pages["api/heads.html"]
    assert "Examples:" in heads
    for name, page in pages.items():
        text = _CODE.sub("", article(page))
        assert "&gt;&gt;&gt;" not in text, name
        assert "<blockquote>" not in text, name


def test_no_markdown_is_left_unread(pages):
    for name, page in pages.items():
        text = _CODE.sub("", article(page))
        assert "**" not in text, name
        assert "```" not in text, name
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
            assert not re.search(r"^\s*(\* |- |\| )", paragraph, re.MULTILINE), f"{name}: {paragraph[:200]}"


def test_a_page_fetches_nothing_from_elsewhere(pages):
    for name, page in pages.items():
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="(https?:[^"]+)"', page)
        fetched += re.findall(r'<link[^>]*\shref="(https?:[^"]+)"', page)
        assert fetched == [], name


def test_the_site_says_nothing_of_where_it_was_built(pages):
    for name, page in pages.items():
        assert str(ROOT) not in page, name
