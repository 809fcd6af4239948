"""A hook of MkDocs: documents outside ``docs/`` become pages, and links that work on a code host work in the site.

Pages are written as they are read in the repository, so a link to an example is ``../examples/cdnow/README.md``. In the
site such a document is a page, any other file is a copy beside the pages, and a folder, which has no page, is a name.
Decisions are listed by what there is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?!https?:|mailto:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_TIGHT_LIST = re.compile(r"^(?![*\-|\s#>]|\d+\. )(.+)\n(?=[*-] )", re.MULTILINE)
_FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every decision into the navigation."""
    for section in config.nav or []:
        for entry in section.get("Project", []):
            if isinstance(entry, dict) and "Decisions" in entry:
                entry["Decisions"] += [
                    path.removeprefix("docs/") for path in sorted(_relative(ROOT.glob("docs/decisions/*.md")))
                ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add documents from outside ``docs/``, and the files that pages link to."""
    for path in ("CONTRIBUTING.md", "CHANGELOG.md", *sorted(_relative(ROOT.glob("examples/*/README.md")))):
        files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        source = _in_repository(page.src_uri)
        for link in _LINK.finditer(_without_code(page.content_string)):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
            if _in_site(target, files) is None and (ROOT / target).is_file():
                files.append(File.generated(config, target, content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: object) -> str:
    """Point links at where their targets are in the site."""
    source = _in_repository(page.file.src_uri)

    def pointed(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        found = _in_site(target, files)
        if found is not None:
            path = posixpath.relpath(found.src_uri, posixpath.dirname(page.file.src_uri) or ".")
            return f"[{link['text']}]({path}{link['anchor'] or ''})"
        if (ROOT / target).is_dir():
            return f"{link['text']} (`{target}/`)"
        return link[0]  # leads nowhere: MkDocs says so

    parts = _FENCE.split(markdown)
    # A list may follow a paragraph at once on a code host; here it needs an empty line.
    return "".join(
        part if part.startswith("```") else _TIGHT_LIST.sub(r"\1\n\n", _LINK.sub(pointed, part)) for part in parts
    )


def _in_repository(src_uri: str) -> str:
    """The path from the repository's root: pages of ``docs/`` lie at the site's root."""
    inside = f"docs/{src_uri}"
    return inside if (ROOT / inside).is_file() else src_uri


def _in_site(path: str, files: Files) -> File | None:
    return files.get_file_from_path(path.removeprefix("docs/"))


def _without_code(markdown: str) -> str:
    return _FENCE.sub("", markdown)


def _relative(paths: Iterable[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]
