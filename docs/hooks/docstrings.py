"""An extension of griffe, which reads the docstrings for the API pages."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_SECTIONS = {"Example:": "Examples:", "Class attributes:": "Attributes:"}  # as people write them, as griffe knows them
_CODE = re.compile(r"\s*(>>>|\.\.\.)")


class AsMarkdown(Extension):
    """Docstrings are written for people who read code; here they are read as Markdown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: ANN401
        """Let sections be found, and indices such as ``[rows][columns]`` be no links."""
        if obj.docstring is None:
            return
        lines = [_SECTIONS.get(line, line) for line in obj.docstring.value.split("\n")]
        obj.docstring.value = "\n".join(line if _CODE.match(line) else line.replace("][", "]\\[") for line in lines)
