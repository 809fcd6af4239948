"""What every configuration model shares: frozen, nothing extra accepted, unknown keys answered with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or the list of known names when none is near."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(choices)}." if choices else ""


def _refuse_boolean(value: object) -> object:
    if isinstance(value, bool):
        word = "yes/on" if value else "no/off"
        raise PydanticCustomError(
            "boolean_name", "YAML read an unquoted word such as {word} as a boolean; put the name in quotes", {"word": word}
        )
    return value


# A name in the config (table, feature, task, column): YAML turns unquoted `no` and `on` into booleans.
Name = Annotated[str, BeforeValidator(_refuse_boolean)]


class Config(BaseModel):
    """Base of all configuration models."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_for_unknown_keys(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            details = [_with_suggestion(item, cls) for item in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(error.title, details) from None


def _with_suggestion(item: Any, model: type[BaseModel]) -> InitErrorDetails:
    loc, kind = item["loc"], item["type"]
    if kind == "extra_forbidden" and len(loc) == 1:
        message = f"unknown key '{loc[0]}'." + did_you_mean(str(loc[0]), model.model_fields)
        custom = PydanticCustomError("unknown_key", "{text}", {"text": message})
    else:
        custom = PydanticCustomError(kind, "{text}", {"text": item["msg"]})
    return InitErrorDetails(type=custom, loc=loc, input=item["input"])


class PluginConfig(Config):
    """Base of the sections whose ``type`` names a class: bottom, head, gradient, loss."""

    type: Name
    """Built-in name, installed entry point, or ``package.module:Class``."""
