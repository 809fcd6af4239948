"""What a plug-in may be called, and what follows from its name."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass
from importlib.resources import files

import yaml

from torchrec_mtl import registry

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 50
_SUFFIX: dict[registry.Kind, str] = {"rule": "Rule", "loss": "Loss", "bottom": "Bottom"}


@dataclass(frozen=True)
class Names:
    """Names of a new plug-in.

    Attributes:
        kind: what it is.
        name: in a YAML, such as ``cross_stitch``.

    Example:
        >>> names = Names("rule", "equal_lengths")
        >>> names.package, names.distribution, names.class_name
        ('mtl_equal_lengths', 'mtl-equal-lengths', 'EqualLengthsRule')
    """

    kind: registry.Kind
    name: str

    @property
    def package(self) -> str:
        """What Python imports."""
        return f"mtl_{self.name}"

    @property
    def distribution(self) -> str:
        """What pip installs."""
        return self.package.replace("_", "-")

    @property
    def class_name(self) -> str:
        """The class."""
        return "".join(part.capitalize() for part in self.name.split("_")) + _SUFFIX.get(self.kind, "")


def check_name(kind: registry.Kind, name: str) -> Names:
    """Return the names, unless the plug-in may not be called so.

    Raises:
        ValueError: it is no lower-case identifier, a word of Python or YAML, or taken by a plug-in, an installed
            package, or, as a class, by what the skeleton imports.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' cannot be the name of a {kind}: {_form(name)}")
    if len(name) > _LONGEST:
        raise ValueError(f"the name of a {kind} has at most {_LONGEST} characters, found {len(name)}")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ValueError(f"'{name}' is a word of Python; choose another name")
    if yaml.safe_load(name) != name:
        raise ValueError(f"'{name}' is read as {yaml.safe_load(name)} in a YAML; choose another name")
    known = registry.names(kind)
    if name in known:
        raise ValueError(f"there is a {kind} '{name}' already ({known[name]}); choose another name")
    names = Names(kind, name)
    if names.class_name in _used_in_skeleton(kind):
        raise ValueError(
            f"the class would be called {names.class_name}, as one that it is made with; choose another name, such as "
            f"'my_{name}'"
        )
    if importlib.util.find_spec(names.package) is not None:
        raise ValueError(f"a package '{names.package}' can be imported already; choose another name, or uninstall it")
    return names


def _used_in_skeleton(kind: registry.Kind) -> set[str]:
    """Return the names that a class in the skeleton would hide: what is imported there, and its own ``Config``."""
    folder = files("torchrec_mtl.scaffold") / "templates"
    text = "".join((folder / f"{module}.py.tmpl").read_text(encoding="utf-8") for module in (kind, f"test_{kind}"))
    lines = re.findall(r"^from (?!\$)\S+ import (.+)$", text, re.MULTILINE)
    return {"Config", *(name for line in lines for name in line.split(", "))}


def _form(name: str) -> str:
    form = "write lower-case letters, digits, and single underscores, a letter first"
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    mended = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    near = mended if _NAME.fullmatch(mended) and len(mended) <= _LONGEST else None
    return f"{form}, such as '{near}'" if near else form
