"""What every configuration model shares: deeply frozen, nothing extra accepted, errors in a user's words."""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from torchrec_mtl.config.explain import explained, quote_boolean
from torchrec_mtl.config.names import did_you_mean

if TYPE_CHECKING:
    from torchrec_mtl.config.features import Side
    from torchrec_mtl.config.tasks import TaskConfig

__all__ = ["Config", "Name", "PluginConfig", "Targets", "Widths", "did_you_mean"]

# A name in the config: table, feature, task, column.
Name = Annotated[str, Field(min_length=1)]
# Feature -> dim of its table; None where the table cannot be read, which other checks report.
Widths = Mapping[str, int | None]
# Sequence -> the sparse feature that it names as its target; those that name none are absent.
Targets = Mapping[str, str]

_MUTABLE = (
    collections.abc.Collection,
    collections.abc.Iterable,
    collections.abc.Mapping,
    collections.abc.MutableMapping,
    collections.abc.MutableSequence,
    collections.abc.MutableSet,
    collections.abc.Sequence,
    collections.abc.Set,
    bytearray,
    dict,
    list,
    set,
)


class Config(BaseModel):
    """Base of all configuration models.

    Example:
        >>> class Options(Config):
        ...     widths: tuple[int, ...] = (8,)
        >>> Options(widths=[16, 8]).widths
        (16, 8)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """Refuse fields that could be changed in place.

        Raises:
            TypeError: a field is a list, a dict, or another mutable container.
        """
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if any(part in _MUTABLE for part in _parts(field.annotation)):
                raise TypeError(
                    f"{cls.__qualname__}.{name}: configs are frozen all the way down; found {field.annotation}; "
                    "use a tuple or a frozenset, or a Config for named values"
                )

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise explained(error, cls) from None

    @field_validator("*", mode="before")
    @classmethod
    def _mend_yaml(cls, value: object, info: ValidationInfo) -> object:
        """Refuse a boolean where none is meant; take a section without content, or a list, as its default."""
        field = cls.model_fields[info.field_name or ""]
        parts = set(_parts(field.annotation))
        if value is None and type(None) not in parts and (field.default == () or isinstance(field.default, Config)):
            return field.default
        several = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(v, bool) for v in several) and not parts & {bool, Any, object}:
            text = quote_boolean(several) if str in parts else "expected a number"
            if parts & {str, int, float}:
                raise PydanticCustomError("explained", "{text}", {"text": text, "found": True})
        return value


def _parts(annotation: object) -> Iterator[object]:
    """Yield an annotation, its origin, and those of all its arguments; a literal's arguments as their types."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        yield from (type(value) for value in typing.get_args(annotation))
        return
    yield annotation if origin is None else origin
    for argument in typing.get_args(annotation):
        yield from _parts(argument)


class PluginConfig(Config):
    """Base of the sections whose ``type`` names a class: bottom, head, gradient, loss."""

    type: Name
    """Built-in name, installed entry point, or ``package.module:Class``."""

    @property
    def alternates(self) -> bool:
        """Whether each step trains one task, so that the tasks' gradients never meet."""
        return False

    @property
    def needs_evaluation(self) -> str:
        """What training itself needs ``data.eval`` for, with the remedy where there is none; empty: nothing."""
        return ""

    @property
    def retrieves(self) -> bool:
        """Of a head: it gives the vectors that a search of a corpus needs."""
        return False

    @property
    def needs_candidates(self) -> str:
        """Of a head: what it needs ``Features.candidates`` for, with the remedy; empty: nothing."""
        return ""

    @property
    def needs_sides(self) -> tuple[Side, ...]:
        """Of a head: the sides that it reads alone, and that some feature must therefore have."""
        return ()

    @property
    def trains_alone(self) -> bool:
        """Of a head: it has losses of its own, so that something is trained where the weight of every task is 0."""
        return False

    def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
        """Return what makes this plug-in impossible for the tasks, with the remedy; ``"key: ..."`` names an option."""
        return []

    def feature_problems(self, fields: Widths, sequences: Widths, targets: Targets) -> list[str]:
        """Return what makes this plug-in impossible for the features, or what is wrong with those that options name.

        Args:
            fields: sparse features there are.
            sequences: sequences there are.
            targets: sequence -> its target, where it names one.

        Returns:
            Messages as those of ``problems``.
        """
        return []
