"""The code blocks of a Markdown page, and what it takes to run them as a reader would."""

from __future__ import annotations

import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

_FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1``` *$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- not run: *(.*?) *-->\s*\Z", re.DOTALL)
_INLINE = re.compile(r"`(torchx run [^`\n]+)`")
SHELL = {"", "console", "bash", "sh"}
LANGUAGES = {*SHELL, "python", "yaml", "text", "diff", "toml", "json", "html", "mermaid"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: where it stands.
        line: of its first line of code.
        language: behind the fence.
        text: the code.
        reason: why it is not to be run, from ``<!-- not run: why -->`` before it; None: it is to be.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for fence in _FENCE.finditer(text):
        mark = _MARK.search(text[: fence.start()])
        line = text.count("\n", 0, fence.start(3)) + 1
        code = re.sub(rf"^{fence[1]}", "", fence[3], flags=re.MULTILINE)
        found.append(Block(page, line, fence[2], code, mark[1] if mark else None))
    return found


def inline_launches(page: Path) -> list[Block]:
    """What a page launches in the middle of a sentence or a table, ``torchx run ...`` between backquotes."""
    text = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page.read_text(encoding="utf-8"))
    return [Block(page, text.count("\n", 0, m.start()) + 1, "console", m[1], None) for m in _INLINE.finditer(text)]


def run_python(found: list[Block]) -> dict[str, object]:
    """Run blocks of one page, each going on where the one before ended, in a module that can be imported by name.

    Raises:
        AssertionError: a block fails; names its page and the line.
    """
    if not found:
        return {}
    module = ModuleType(f"page_{re.sub(r'[^a-z0-9]', '_', found[0].page.stem.lower())}")
    module.__file__ = str(found[0].page)
    sys.modules[module.__name__] = module
    try:
        for block in found:
            code = "\n" * (block.line - 1) + block.text  # so that tracebacks name the line of the page
            try:
                exec(compile(code, str(block.page), "exec"), vars(module))
            except BaseException as error:
                lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(block.page)]
                at = getattr(error, "lineno", None) or (lines or [block.line])[-1]
                raise AssertionError(f"{block.page.name}:{at}: {type(error).__name__}: {error}") from error
        return vars(module)
    finally:
        del sys.modules[module.__name__]


def command_lines(block: Block, program: str = "torchrec-mtl") -> Iterator[list[str]]:
    """Words of each command of a block behind its program, without comments and what is behind a pipe or an ``&&``."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if not line.removeprefix("$ ").startswith(f"{program} "):
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        ends = [i for i, word in enumerate(words) if word in {"|", "&&", ";", ">", "&", "||"}]
        yield words[1 : min(ends, default=len(words))]
