"""Crafted programs are refused before torch opens them: each way in which one could run code."""

import io
import json
import logging
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim

from torchrec_mtl.serving.operations import is_known
from torchrec_mtl.serving.predictor import Predictor
from torchrec_mtl.serving.trusted import load_program, read_program


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor([1.0, 2.0]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu(self.layer(x) * self.scale)


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    exported = torch.export.export(Small().eval(), (torch.zeros(4, 3),), dynamic_shapes=({0: Dim.DYNAMIC},))
    for node in exported.graph.nodes:
        node.meta = {k: v for k, v in node.meta.items() if k in {"val", "tensor_meta"}}
    exported.example_inputs = None
    exported._guards_code = []
    torch.export.save(exported, tmp_path / "p.pt2")
    return tmp_path / "p.pt2"


def changed(program: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The program with other members; their common folder is left out of the names."""
    with zipfile.ZipFile(program) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    out = program.with_name("crafted.pt2")
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"p/{name}", content)
    return out


def in_json(member: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        content = json.loads(members[member])
        change(content)
        members[member] = json.dumps(content).encode()

    return apply


MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def nodes(model: Any) -> list[Any]:
    return model["graph_module"]["graph"]["nodes"]


def set_target(target: str) -> Callable[[dict[str, bytes]], None]:
    return in_json(MODEL, lambda model: nodes(model)[0].update(target=target))


def set_size(text: str) -> Callable[[dict[str, bytes]], None]:
    def change(model: Any) -> None:
        sizes = next(v for v in model["graph_module"]["graph"]["tensor_values"].values() if "as_expr" in v["sizes"][0])
        sizes["sizes"][0]["as_expr"]["expr_str"] = text

    return in_json(MODEL, change)


def first_entry(config: Any) -> Any:
    return next(iter(config["config"].values()))


CRAFTED = {
    "function of torch": set_target("torch.os.system"),
    "function by a long way": set_target("torch.ops.aten.__class__.__init__"),
    "function of operator": set_target("_operator.methodcaller"),
    "function of math's module": set_target("math.__loader__.load_module"),
    "file operation": set_target("torch.ops.aten.from_file.default"),
    "operation that writes": set_target("torch.ops.aten.add_.Tensor"),
    "operation with an output": set_target("torch.ops.aten.add.out"),
    "operation that trusts its arguments": set_target("torch.ops.fbgemm.permute_2D_sparse_data.default"),
    "operation that saves": set_target("torch.ops.aten.save.default"),
    "endless size": set_size("Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
    "large number": set_size("Integer(99999999999999)"),
    "extension": set_target("#yours:x"),
    "size": set_size("__import__('os').system('true')"),
    "size by attribute": set_size("Symbol('s0').func"),
    "guards": in_json(MODEL, lambda m: m.update(guards_code=["__import__('os').system('true')"])),
    "name": in_json(MODEL, lambda m: nodes(m)[0].update(name="x; import os")),
    "metadata": in_json(MODEL, lambda m: nodes(m)[0].update(metadata={"nn_module_stack": "a,b,c"})),
    "inputs of another type": in_json(
        MODEL,
        lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "collections.OrderedDict", "context": "null", "children_spec": []}]'
        ),
    ),
    "named tuples": in_json(MODEL, lambda m: m["graph_module"].update(treespec_namedtuple_fields={"a": {}})),
    "pickled weight": in_json(WEIGHTS, lambda c: first_entry(c).update(use_pickle=True)),
    "custom object": in_json(CONSTANTS, lambda c: first_entry(c).update(path_name="custom_obj_0")),
    "opaque object": in_json(CONSTANTS, lambda c: first_entry(c).update(path_name="opaque_obj_0")),
    "weight elsewhere": in_json(WEIGHTS, lambda c: first_entry(c).update(path_name="../../x")),
    "native code": lambda members: members.update({"data/aotinductor/model/x.so": b""}),
    "old weights": lambda members: members.update({"data/weights/model.pt": b""}),
    "another model": lambda members: members.update({"models/other.json": members[MODEL]}),
}


def test_our_programs_are_opened(program: Path):
    x = torch.randn(5, 3)
    assert load_program(program).module()(x).shape == (5, 2)
    assert load_program(changed(program, lambda members: None)).module()(x).shape == (5, 2)


@pytest.mark.parametrize("crafted", CRAFTED.values(), ids=CRAFTED.keys())
def test_a_crafted_program_is_refused(program: Path, crafted: Callable[[dict[str, bytes]], None]):
    path = changed(program, crafted)
    with pytest.raises(ValueError, match="is no program of this package, and is not opened: "):
        read_program(path)


def test_example_inputs_are_not_unpickled(program: Path, tmp_path: Path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(Payload(mark), buffer)
    path = changed(program, lambda members: members.update({"data/sample_inputs/model.pt": buffer.getvalue()}))
    with pytest.raises(ValueError, match="it holds example inputs"):
        load_program(path)
    assert not mark.exists()
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(AssertionError):  # after it has run the code: what came out is no tuple
            torch.export.load(path)
    finally:
        logging.disable(logging.NOTSET)
    assert mark.exists(), "the attack is one"


@pytest.mark.parametrize("content", [b"", b"no zip", pickle.dumps([1])])
def test_what_is_no_program_is_told(tmp_path: Path, content: bytes):
    (tmp_path / "p.pt2").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*p\.pt2.*export the bundle again"):
        load_program(tmp_path / "p.pt2")
    with pytest.raises(ValueError, match=r"cannot read .*none\.pt2"):
        load_program(tmp_path / "none.pt2")


@pytest.mark.parametrize("member", [MODEL, WEIGHTS])
@pytest.mark.parametrize("content", [b"[]", b"{}", b"3", b"{", b'{"config": {"a": 3}}', b'{"graph_module": []}'])
def test_damaged_descriptions_are_told(program: Path, member: str, content: bytes):
    path = changed(program, lambda members: members.update({member: content}))
    with pytest.raises(ValueError, match="export the bundle again"):
        load_program(path)


def test_a_bundle_with_a_crafted_program_is_refused(bundle: Path, tmp_path: Path):
    """Also where its checksums fit."""
    import shutil

    from torchrec_mtl.serving.bundle import read_about, write_about

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    crafted = changed(copy / "programs" / "rows.pt2", set_target("torch.os.system"))
    crafted.rename(copy / "programs" / "rows.pt2")
    write_about(copy, read_about(copy))
    with pytest.raises(ValueError, match=r"it names 'torch\.os\.system'"):
        Predictor.load(copy)


def test_two_readers_of_one_archive_see_the_same(program: Path, tmp_path: Path):
    """Python finds the directory of a zip right before its end; torch's reader goes where the end says it is."""
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(Payload(mark), buffer)
    inputs = "data/sample_inputs/model.pt"
    evil = changed(program, lambda members: members.update({inputs: buffer.getvalue()})).read_bytes()
    good = changed(program, lambda members: members.update({inputs: b""})).read_bytes()
    ends = {raw: raw.rfind(b"PK\5\6") for raw in (evil, good)}
    (evil_size, evil_at), (good_size, good_at) = (struct.unpack("<II", raw[e + 12 : e + 20]) for raw, e in ends.items())
    assert evil_size == good_size
    front = evil[: ends[evil]]
    moved = len(front) + ends[good] - good_size - evil_at  # what Python takes every place to be off by
    directory, at = bytearray(good[good_at : ends[good]]), 0
    while at < len(directory):
        name, extra, comment = struct.unpack("<HHH", directory[at + 28 : at + 34])
        (place,) = struct.unpack("<I", directory[at + 42 : at + 46])
        directory[at + 42 : at + 46] = struct.pack("<I", place + len(front) - moved)
        at += 46 + name + extra + comment
    end = bytearray(good[ends[good] :])
    end[16:20] = struct.pack("<I", evil_at)
    crafted = tmp_path / "two.pt2"
    crafted.write_bytes(front + good[:good_at] + bytes(directory) + bytes(end))
    assert load_program(crafted).module()(torch.zeros(2, 3)).shape == (2, 2)
    assert not mark.exists()
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(AssertionError):
            torch.export.load(crafted)
    finally:
        logging.disable(logging.NOTSET)
    assert mark.exists(), "the attack is one"


def test_known_operations_write_to_no_argument():
    assert is_known("torch.ops.aten.embedding_bag.padding_idx")
    assert is_known("torch.ops.aten.where.self")
    assert not is_known("torch.ops.aten.nothing.default")
    assert not is_known("torch.ops.aten.relu.nothing")
    assert not is_known("torch.ops.aten.relu_.default")
