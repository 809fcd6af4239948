"""The JSON schema of the YAML, so that editors complete and check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.registry import BUILT_IN, Kind, names, resolve

Schema = dict[str, Any]

_NAMES: dict[Kind, str] = {"bottom": "bottom", "head": "head", "rule": "gradient", "loss": "loss"}
_OWN_CLASS = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a run.

    Each plug-in section is a name, or a mapping whose ``type`` decides what else it may hold; plug-ins that are not
    built in may hold anything here, and are checked when the config is read.
    """
    schema = _model_schema(RunConfig, "")
    definitions: dict[str, Schema] = schema.pop("$defs")
    definitions.pop("PluginConfig")
    for kind, section in _NAMES.items():
        definitions[section] = _plugin_schema(kind, section, definitions)
    for section in ("bottom", "head", "gradient"):
        _refer(schema, section, section)
    _refer(definitions["TaskConfig"], "loss", "loss")
    dense = definitions["FeaturesConfig"]["properties"]["dense"]
    dense["items"] = {"anyOf": [{"type": "string", "description": "Name of the column."}, dense["items"]]}
    schema["required"] = [key for key in schema["required"] if key not in {"bottom", "gradient"}]
    definitions["TaskConfig"]["required"].remove("loss")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "torchrec_mtl run",
        **{key: value for key, value in schema.items() if key != "title"},
        "$defs": definitions,
    }


def _refer(schema: Schema, key: str, definition: str) -> None:
    """Point a property to a definition; it keeps its own description."""
    described = {k: v for k, v in schema["properties"][key].items() if k == "description"}
    schema["properties"][key] = {"$ref": f"#/$defs/{definition}", **described}


def _plugin_schema(kind: Kind, section: str, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a section, and add those of its built-in classes to the definitions."""
    built_in = BUILT_IN[kind]
    for name in built_in:
        prefix = f"{section}.{name}"
        options = _model_schema(resolve(kind, name).Config, f"{prefix}.")
        definitions |= options.pop("$defs", {})
        options["properties"]["type"] = {"const": name, "description": _type_description()}
        options["required"] = sorted({"type", *options.get("required", [])})
        definitions[prefix] = options
    installed = sorted(set(names(kind)) - set(built_in))
    other: list[Schema] = [{"type": "string", "pattern": _OWN_CLASS}, *({"const": name} for name in installed)]
    mapping = {
        "type": "object",
        "properties": {"type": {"anyOf": other, "description": _type_description()}},
        "required": ["type"],
    }
    by_name = {"anyOf": [{"enum": sorted(built_in)}, *other]}
    return {"oneOf": [*({"$ref": f"#/$defs/{section}.{name}"} for name in built_in), by_name, mapping]}


def _type_description() -> str:
    return PluginConfig.model_fields["type"].description or ""


def _model_schema(model: type[PluginConfig] | type[RunConfig], prefix: str) -> Schema:
    """Return a model's schema; the names of what it defines begin with ``prefix``."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    definitions = {f"{prefix}{name}": value for name, value in schema.pop("$defs", {}).items()}
    tidy: Schema = _tidy(schema)
    return {**tidy, "$defs": {name: _tidy(value) for name, value in definitions.items()}} if definitions else tidy


def _tidy(value: Any) -> Any:  # noqa: ANN401
    """Remove pydantic's titles, which repeat the keys, and line breaks within descriptions."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    tidy = {}
    for key, item in value.items():
        if key == "title" and isinstance(item, str):
            continue
        words = key == "description" and isinstance(item, str)
        tidy[key] = " ".join(item.split()) if words else _tidy(item)
    return tidy
