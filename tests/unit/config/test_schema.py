"""The JSON schema accepts what the loader accepts. Checked with jsonschema where installed, else by the lines below."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from torchrec_mtl.config.load import parse
from torchrec_mtl.config.overrides import apply_overrides
from torchrec_mtl.config.schema import json_schema

# Those of a cluster and spaces for tuning are no runs, and that of custom_head needs its package.
OTHERS = {"multinode", "custom_head", "space.yaml"}
EXAMPLES = sorted(
    p for p in Path(__file__).parents[3].glob("examples/**/*.yaml") if not {p.parent.name, p.name} & OTHERS
)
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
TYPES |= {"number": (int, float), "null": type(None)}


@pytest.fixture(scope="module")
def schema():
    return json_schema()


def valid(value, schema, root):
    """A structural check: enough of JSON schema for what pydantic writes."""
    if importlib.util.find_spec("jsonschema"):
        import jsonschema

        return jsonschema.Draft202012Validator({**schema, "$defs": root["$defs"]}).is_valid(value)
    if "$ref" in schema:
        return valid(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    wanted = TYPES[schema["type"]] if "type" in schema else object
    if not isinstance(value, wanted) or (isinstance(value, bool) and schema.get("type") in {"integer", "number"}):
        return False
    tests = [
        "enum" not in schema or value in schema["enum"],
        "const" not in schema or value == schema["const"],
        "anyOf" not in schema or any(valid(value, s, root) for s in schema["anyOf"]),
        "oneOf" not in schema or sum(valid(value, s, root) for s in schema["oneOf"]) == 1,
    ]
    if isinstance(value, str):
        tests.append(re.search(schema.get("pattern", ""), value) is not None)
        tests.append(len(value) >= schema.get("minLength", 0))
    if isinstance(value, (int, float)):
        tests += [value >= schema.get("minimum", value), value <= schema.get("maximum", value)]
        tests.append("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
    if isinstance(value, list):
        tests.append(len(value) >= schema.get("minItems", 0))
        tests += [valid(item, schema.get("items", {}), root) for item in value]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        tests.append(set(schema.get("required", ())) <= set(value))
        tests += [
            valid(v, known[k], root) if k in known else schema.get("additionalProperties", True)
            for k, v in value.items()
        ]
    return all(tests)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_example_fits(schema, path):
    raw = yaml.safe_load(path.read_text())
    assert valid(raw, schema, schema)
    parse(raw)


OVERRIDES = {
    "head=htlnet": True,
    "head={type: htlnet, tower: [8], temperature: {start: 5}}": True,
    "head=mine.heads:Mine": True,
    "head={type: 'mine.heads:Mine', depth: 3}": True,
    "features.dense=[age, {name: hour, normalize: false}]": True,
    "data.train=[a, b]": True,
    "tasks.0.loss=focal": True,
    "tasks.2.loss={type: huber, delta: 2}": True,
    "gradient={type: htlnet, core: watch_time}": True,
    "head=htlnt": False,
    "head={tower: [8]}": False,
    "head={type: htlnet, towr: [8]}": False,
    "head={type: htlnet, temperature: {strt: 5}}": False,
    "gradient={type: htlnet}": False,
    "tasks.0.loss={type: bce, delta: 2}": False,
    "train.epochs=0": False,
    "train.epochz=1": False,
    "features.dense=[3]": False,
    "data.train=[]": False,
    "trian={}": False,
}


@pytest.mark.parametrize(("override", "fits"), OVERRIDES.items())
def test_the_schema_accepts_what_the_loader_accepts(schema, raw, override, fits):
    assert valid(raw, schema, schema)
    apply_overrides(raw, [override])
    assert valid(raw, schema, schema) is fits


@pytest.mark.parametrize("path", ["data", "features", "tasks", "head", "run_dir"])
def test_the_schema_wants_what_the_loader_wants(schema, raw, path):
    del raw[path]
    assert not valid(raw, schema, schema)


def test_the_schema_says_what_it_is_and_what_keys_mean(schema):
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "torchrec_mtl run"
    keys = schema["$defs"]["TaskConfig"]["properties"]
    assert keys["space"]["description"].startswith("Column of 0/1")
    assert all("\n" not in key.get("description", "") for key in keys.values())
    assert schema["additionalProperties"] is False
    for name, definition in schema["$defs"].items():
        assert definition.get("additionalProperties") is False or "oneOf" in definition, name
