"""Where a new run's values come from, if not from its seed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from torchrec_mtl.config.base import Config, Name


class InitFromConfig(Config):
    """An earlier run whose tables and dense part a new run starts with, as far as names and shapes fit.

    Example:
        >>> InitFromConfig.model_validate("runs/yesterday").run
        'runs/yesterday'
    """

    run: Name
    """Its run_dir."""
    checkpoint: Literal["best", "latest"] | None = None
    """By default the best, where evaluations chose one."""
    optimizers: bool = False
    """The optimizers' states of what fits, too; both runs then need the same types of optimizers."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"run": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Let the run's path stand for the mapping."""
        mapping: dict[str, Any] = handler.resolve_ref_schema(handler(schema))
        return {"oneOf": [{"type": "string", "description": "Its run_dir."}, mapping]}
