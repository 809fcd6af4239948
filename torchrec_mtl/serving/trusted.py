"""Programs in the format of ``torch.export``, opened only if they hold nothing but tensors and tensor operations.

``torch.export.load`` runs what a crafted file asks for: it unpickles weights that call themselves pickled, custom
objects, and example inputs; it finds a node's function by any path from ``torch`` (``torch.os.system`` is one); it has
sympy evaluate sizes; and it compiles guards, which are Python. Our programs need none of this. So the file is read
first, and what is not on the list is refused: whoever hands out bundles can then give wrong scores, but run no code.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)|models/model\.json"
    r"|data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
    r"|data/sample_inputs/model\.pt)"
)
_TARGETS = re.compile(
    r"torch\.ops\.(aten|fbgemm)\.(?!__)\w+\.(?!__)\w+|torch\.ops\.aten\.__(and|or|xor)__\.(Tensor|Scalar)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(max|min|int|float|not|ite|sum)|math\.(ceil|floor|trunc)"
)
_FILE_OPERATIONS = re.compile(r"torch\.ops\.aten\.(from_file|.*from_blob).*")
_TENSORS = re.compile(r"(weight|tensor)_\d+")
_NAMES = re.compile(r"[A-Za-z0-9_.]*")
_HIDDEN = re.compile(r"(^|\.)__")
_SIZES = re.compile(r"[A-Za-z0-9_'(), =-]*")
_WORDS = re.compile(
    r"[su]\d+|zuf\d+|\d+|Symbol|Integer|Rational|Mul|Add|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Eq|Ne|"
    r"StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|positive|integer|nonnegative|True|False|true|false"
)
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
# What zipfile, json, and our own look at other shapes raise.
_OF_DAMAGE = (
    *(OSError, zipfile.BadZipFile, NotImplementedError, ValueError, LookupError),
    *(RecursionError, EOFError, AttributeError, TypeError),
)
_LARGEST = 64 << 20  # bytes of a program's description


def load_program(path: Path) -> ExportedProgram:
    """Load a program.

    Raises:
        ValueError: it cannot be read, or holds more than tensors and operations on them.
    """
    check_program(path)
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises all kinds at a file that is damaged
        raise ValueError(f"cannot load {path}: {str(error).splitlines()[0]}; export the bundle again") from error


def check_program(path: Path) -> None:
    """Raise ``ValueError`` where a file holds more than tensors and operations on them."""
    try:
        with zipfile.ZipFile(path) as archive:
            problem = next(_problems(archive), None)
    except _OF_DAMAGE as error:
        raise ValueError(f"cannot read {path}: {error}; export the bundle again") from error
    if problem is not None:
        raise ValueError(f"{path} is no program of this package, and is not opened: {problem}; export the bundle again")


def _problems(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    yield from (f"it holds the file '{n}'" for n in names if not _MEMBERS.fullmatch(n))
    if len(set(names)) < len(names):
        yield "two of its files have one name"
    for info in archive.infolist():
        if info.filename.endswith("/data/sample_inputs/model.pt") and info.file_size:
            yield "it holds example inputs"
        if info.filename.endswith("_config.json"):
            yield from _of_payload(_json(archive, info))
        if info.filename.endswith("/models/model.json"):
            yield from _of_program(_json(archive, info))


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:  # noqa: ANN401
    if info.file_size > _LARGEST:
        raise ValueError(f"{info.filename} has {info.file_size} bytes")
    return json.loads(archive.read(info))


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
        return bool(_TARGETS.fullmatch(value)) and not _FILE_OPERATIONS.fullmatch(value)
    if key == "expr_str":
        return bool(_SIZES.fullmatch(value)) and all(_WORDS.fullmatch(word) for word in re.findall(r"\w+", value))
    return bool(_NAMES.fullmatch(value)) and not _HIDDEN.search(value)
