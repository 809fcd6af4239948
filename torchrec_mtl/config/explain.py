"""Pydantic's errors in a user's words: what was expected, what was found, what to do."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from torchrec_mtl.config.names import did_you_mean, nearest

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_LONGEST = 60
_NUMBER = "expected a number"
_WHOLE = "expected a whole number"
_BOOLEAN = "expected true or false"
_LIST = "expected a list"


class ConfigError(ValueError):
    """All that is wrong with a config, one line a problem."""

    def __init__(self, problems: Sequence[str], source: str = "config") -> None:
        self.problems = list(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n".join([f"{source}: {len(self.problems)} {noun}", *(f"  {p}" for p in self.problems)]))


def shown(value: object) -> str:
    """Return a value as a user would write it in YAML, shortened."""
    if isinstance(value, str):
        text = f"'{value}'"
    else:
        try:
            text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n")
        except yaml.YAMLError:
            text = f"a Python {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def quote_boolean(values: Iterable[object]) -> str:
    """Say that a name was an unquoted word that YAML takes for a boolean."""
    word = "yes, on, or true" if any(value is True for value in values) else "no, off, or false"
    return f"expected text, but YAML reads an unquoted {word} as a boolean; put it in quotes"


def messages(error: ValidationError, path: str = "") -> list[str]:
    """Return one line an error: path, what was found, the fix."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(filter(None, [path, *(str(part) for part in item["loc"])]))
        lines.append(f"{where}: {item['msg']}")
    return lines


def explained(error: ValidationError, model: type[BaseModel]) -> ValidationError:
    """Reword the errors of ``model``; those of the models in it are reworded already."""
    items = error.errors(include_url=False)
    renamed = {near for item in items if (near := _renamed(item, model)) is not None}
    kept = [item for item in items if not _follows(item, items, renamed)]
    return ValidationError.from_exception_data(error.title, [_reworded(item, model) for item in kept])


def _follows(item: ErrorDetails, items: Sequence[ErrorDetails], renamed: Collection[str]) -> bool:
    """Whether an error is but the echo of another: a missing key that is misspelt, a list short of its bad items."""
    loc = item["loc"]
    if item["type"] == "missing":
        return len(loc) == 1 and loc[0] in renamed
    return item["type"] == "too_short" and any(other["loc"][:-1] == loc for other in items if other["loc"])


def suggestion(item: ErrorDetails) -> str | None:
    """Return the name that an unknown key or value most likely stands for."""
    near = item.get("ctx", {}).get("near")
    return near if isinstance(near, str) else None


def _renamed(item: ErrorDetails, model: type[BaseModel]) -> str | None:
    """Return the known key that an unknown one of ``model`` stands for."""
    if item["type"] != "extra_forbidden" or len(item["loc"]) != 1 or home(str(item["loc"][0])):
        return None
    return nearest(str(item["loc"][0]), model.model_fields)


def _reworded(item: ErrorDetails, model: type[BaseModel]) -> InitErrorDetails:
    loc, kind, value = item["loc"], item["type"], item["input"]
    if kind == "invalid_key":
        text = f"the key {shown(value)} is no text; put it in quotes"
        return InitErrorDetails(type=PydanticCustomError("key", "{text}", {"text": text}), loc=loc[:-1], input=value)
    context: dict[str, Any] = dict(item.get("ctx", {}))
    if "text" not in context or context.get("found") is True:
        context = _context(item, model)
    return InitErrorDetails(type=PydanticCustomError(kind, "{text}", context), loc=loc, input=value)


def _context(item: ErrorDetails, model: type[BaseModel]) -> dict[str, Any]:
    """Return ``text``, the message, and ``near``, a suggested name."""
    kind, value, loc = item["type"], item["input"], item["loc"]
    context: Mapping[str, Any] = item.get("ctx", {})
    field = model.model_fields.get(str(loc[0])) if loc else None
    if kind == "extra_forbidden":
        key = str(loc[-1])
        return {
            "text": f"unknown key.{home(key) or did_you_mean(key, model.model_fields)}",
            "near": _renamed(item, model),
        }
    if kind == "missing":
        return {"text": "missing." + _described(field)}
    if value is None:
        return {"text": "empty; give a value" + ("" if field is None or field.is_required() else " or remove the key")}
    if kind == "literal_error":
        known = _literals(context)
        near = nearest(value, known) if isinstance(value, str) else None
        hint = f" Did you mean '{near}'?" if near else ""
        return {"text": f"expected {_one_of(known)}, found {shown(value)}.{hint}", "near": near}
    text = context["text"] if "text" in context else _expected(kind, value, context, model, item["msg"])
    return {"text": text if kind == "value_error" else f"{text} (found {shown(value)})"}


def _expected(kind: str, value: object, context: Mapping[str, Any], model: type[BaseModel], fallback: str) -> str:
    texts: dict[str, Callable[[], str]] = {
        "greater_than": lambda: f"{_NUMBER} above {context['gt']:g}",
        "greater_than_equal": lambda: f"{_NUMBER} of at least {context['ge']:g}",
        "less_than": lambda: f"{_NUMBER} below {context['lt']:g}",
        "less_than_equal": lambda: f"{_NUMBER} of at most {context['le']:g}",
        "too_short": lambda: f"{_LIST} of at least {context['min_length']}",
        "too_long": lambda: f"{_LIST} of at most {context['max_length']}",
        "model_type": lambda: f"expected a mapping, such as {_example(model)}",
        "string_type": lambda: _wanted_text(value),
        "string_too_short": lambda: "expected text that is not empty",
        "finite_number": lambda: "expected a finite number",
        "value_error": lambda: fallback.removeprefix("Value error, "),
        **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), lambda: _WHOLE),
        **dict.fromkeys(("float_type", "float_parsing"), lambda: _NUMBER),
        **dict.fromkeys(("bool_type", "bool_parsing"), lambda: _BOOLEAN),
        **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type"), lambda: _wanted_list(value)),
    }
    return texts.get(kind, lambda: fallback.replace("Input should be", "expected"))()


def _wanted_text(value: object) -> str:
    if isinstance(value, (datetime.date, datetime.datetime)):
        return "expected text, but YAML reads this as a date; put it in quotes"
    if isinstance(value, (int, float)):
        return "expected text, but YAML reads this as a number; put it in quotes"
    return "expected text"


def _wanted_list(value: object) -> str:
    return _LIST if isinstance(value, Mapping) else f"{_LIST}, such as [{value}]"


def _example(model: type[BaseModel]) -> str:
    keys = [name for name, field in model.model_fields.items() if field.is_required()] or list(model.model_fields)[:2]
    return "{" + ", ".join(f"{key}: ..." for key in keys) + "}"


def _described(field: FieldInfo | None) -> str:
    return (
        f" {' '.join(field.description.split())}" if field is not None and field.description else " It has no default."
    )


def _literals(context: Mapping[str, Any]) -> list[str]:
    """Return the accepted words of pydantic's "'a', 'b' or 'c'"."""
    return [word.strip().strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(",")]


def _one_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def home(key: str) -> str:
    """Ask for the place where a key belongs that stands in the wrong section; empty where there is none."""
    places = _places().get(key, ())
    return f" Did you mean {' or '.join(places)}?" if 0 < len(places) <= 3 else ""


@cache
def _places() -> dict[str, list[str]]:
    from torchrec_mtl.config.data import DataConfig
    from torchrec_mtl.config.training import OptimConfig, TrainConfig

    found: dict[str, list[str]] = {}

    def visit(model: type[BaseModel], path: str) -> None:
        for name, field in model.model_fields.items():
            found.setdefault(name, []).append(f"{path}.{name}")
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                visit(field.annotation, f"{path}.{name}")

    for section, model in (("data", DataConfig), ("optim", OptimConfig), ("train", TrainConfig)):
        visit(model, section)
    del found["type"]
    return found
