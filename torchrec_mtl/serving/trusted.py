"""Programs in the format of ``torch.export``, opened only if they hold nothing but tensors and operations on them.

``torch.export.load`` runs what a crafted file asks for: it unpickles weights that call themselves pickled, custom
objects, and example inputs; it finds a node's function by any path from ``torch`` (``torch.os.system`` is one); it has
sympy evaluate sizes; and it compiles guards, which are Python. Our programs need none of this. So the file is read
first, and what is not on the list is refused. Whoever hands out bundles can then give wrong scores, take time and
memory, and, where a kernel of torch trusts its arguments, end the process; Python of theirs does not run.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from torchrec_mtl.quiet import leave_out_advice
from torchrec_mtl.serving.operations import is_known

_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)|models/model\.json"
    r"|data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
    r"|data/sample_inputs/model\.pt)"
)
_TENSORS = re.compile(r"(weight|tensor)_\d+")
_NAMES = re.compile(r"[A-Za-z0-9_.]*")
_HIDDEN = re.compile(r"(^|\.)__")
_SIZES = re.compile(r"[A-Za-z0-9_'(), =-]{0,2000}")
_WORDS = re.compile(
    r"[su]\d+|zuf\d+|\d{1,12}|Symbol|Integer|Rational|Mul|Add|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Eq|Ne|"
    r"StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|positive|integer|nonnegative|True|False|true|false"
)
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
# What zipfile, json, and our own look at other shapes raise.
_OF_DAMAGE = (
    *(OSError, zipfile.BadZipFile, NotImplementedError, ValueError, LookupError),
    *(RecursionError, EOFError, AttributeError, TypeError),
)


def load_program(path: Path) -> ExportedProgram:
    """Load a program.

    What torch gets to see is what was looked at: an archive made anew of it. Two readers of one archive need not find
    the same in it.

    Raises:
        ValueError: it cannot be read, or holds more than tensors and operations on them.
    """
    leave_out_advice()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        for name, content in read_program(path).items():
            written.writestr(name, content)
    archive.seek(0)
    try:
        return torch.export.load(archive)
    except Exception as error:  # torch raises all kinds at a file that is damaged
        raise ValueError(f"cannot load {path}: {str(error).splitlines()[0]}; export the bundle again") from error


def read_program(path: Path) -> dict[str, bytes]:
    """Return the members of a program's archive.

    Raises:
        ValueError: it cannot be read, or holds more than tensors and operations on them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            problem = next(_of_archive(archive), None)
            members = {} if problem else {info.filename: archive.read(info) for info in archive.infolist()}
        problem = problem or next(_problems(members), None)
    except _OF_DAMAGE as error:
        raise ValueError(f"cannot read {path}: {error}; export the bundle again") from error
    if problem is not None:
        raise ValueError(f"{path} is no program of this package, and is not opened: {problem}; export the bundle again")
    return members


def _of_archive(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    yield from (f"it holds the file '{n}'" for n in names if not _MEMBERS.fullmatch(n))
    if len(set(names)) < len(names):
        yield "two of its files have one name"
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        yield "it is compressed"


def _problems(members: dict[str, bytes]) -> Iterator[str]:
    for name, content in members.items():
        if name.endswith("/data/sample_inputs/model.pt") and content:
            yield "it holds example inputs"
        if name.endswith("_config.json"):
            yield from _of_payload(json.loads(content))
        if name.endswith("/models/model.json"):
            yield from _of_program(json.loads(content))


def _of_payload(payload: Any) -> Iterator[str]:  # noqa: ANN401
    entries = payload.get("config") if isinstance(payload, dict) else None
    if not isinstance(entries, dict):
        yield "its list of tensors is none"
        return
    for name, entry in entries.items():
        if entry.get("use_pickle") is not False or not _TENSORS.fullmatch(str(entry.get("path_name"))):
            yield f"'{name}' is no plain tensor"


def _of_program(program: Any) -> Iterator[str]:  # noqa: ANN401
    if not isinstance(program, dict) or program.get("guards_code"):
        yield "it holds guards, which are Python"
        return
    graph = program.get("graph_module", {})
    for call in graph.get("module_call_graph", ()):
        signature = call.pop("signature", None) or {}
        for key in ("in_spec", "out_spec"):
            yield from _of_containers(json.loads(signature.pop(key, "[1, {}]")))
        yield from _of_strings(signature, "module_call_graph")
    if graph.get("treespec_namedtuple_fields"):
        yield "its inputs are of other types than tuples and lists"
    program.pop("torch_version", None)
    yield from _of_strings(program, "")


def _of_containers(spec: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(spec, list):
        for part in spec:
            yield from _of_containers(part)
    elif isinstance(spec, dict):
        if spec.get("type") not in _CONTAINERS:
            yield f"its inputs are of the type {spec['type']}"
        yield from _of_containers(spec.get("children_spec"))


def _of_strings(value: Any, key: str) -> Iterator[str]:  # noqa: ANN401
    """Go through all strings of a description; what each may be depends on its key."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "metadata" and part:
                yield "its nodes carry metadata"
            if not _NAMES.fullmatch(name):
                yield f"it has the name '{name}'"
            yield from _of_strings(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _of_strings(part, key)
    elif isinstance(value, str) and not _fits(value, key):
        yield f"it names '{value[:80]}'"


def _fits(value: str, key: str) -> bool:
    if key == "target":
        return is_known(value)
    if key == "expr_str":
        return bool(_SIZES.fullmatch(value)) and all(_WORDS.fullmatch(word) for word in re.findall(r"\w+", value))
    return bool(_NAMES.fullmatch(value)) and not _HIDDEN.search(value)
