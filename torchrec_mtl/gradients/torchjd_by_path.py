"""Any Gramian weighting of torchjd as a rule: ``gradient: {type: "torchjd.aggregation:KrumWeighting", ...}``."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import torch
import torchjd.aggregation
from pydantic import create_model
from torch import Tensor
from torchjd import Stateful
from torchjd.aggregation import Aggregator, ConstantWeighting, MeanWeighting, RandomWeighting, SumWeighting, Weighting
from torchjd.aggregation._weighting_bases import _MatrixWeighting

from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.gramians import on_cpu

_PLAIN = (int, float, bool, str)
# They take a matrix, and look at nothing but its number of rows.
_COUNT_ROWS = (ConstantWeighting, MeanWeighting, RandomWeighting, SumWeighting)
_BUILT_IN = {
    "PCGrad": "pcgrad",
    "GradVac": "gradvac",
    "CAGrad": "cagrad",
    "MGDA": "mgda",
    "IMTLG": "imtl",
    "AlignedMTL": "aligned",
    "UPGrad": "upgrad",
    "Sum": "sum",
}


class WeightingRule(GradientRule):
    """A weighting of torchjd, group by group, in float64 on the CPU; see ``as_rule``.

    Weights are torchjd's, of which many sum to 1, where the plain sum's and the built-in rules' sum to about K.

    Args:
        config: options, those of the weighting among them.
        tasks: names.
        num_groups: G.
    """

    needs = "gramian"
    scale_invariant = False
    weighting_class: ClassVar[type[Weighting[Any]]]

    def __init__(self, config: RuleConfig, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.weighting = _make(self.weighting_class, config)

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K].

        Raises:
            ValueError: a gradient or a weight is not finite.
        """
        assert gramian is not None
        exact = on_cpu(gramian, self.tasks)
        weights = torch.stack([self.weighting(group) for group in exact])
        if not bool(weights.isfinite().all()):
            raise ValueError(
                f"{self.weighting_class.__name__} gives weights that are not finite ({weights.tolist()}) for the inner "
                f"products {exact.tolist()}; use a built-in rule: they cope with tasks without gradient in a batch"
            )
        return weights.to(gramian)


class WeightingConfig(RuleConfig):
    """Options of a weighting, added to those of all rules."""

    weighting_class: ClassVar[type[Weighting[Any]]]

    def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
        """Ask the weighting: it must take its options, and a Gramian of that many tasks."""
        name = self.weighting_class.__name__
        built_in = _BUILT_IN.get(name.removesuffix("Weighting"))
        hint = f". The built-in '{built_in}' needs no more than is installed" if built_in else ""
        try:
            _make(self.weighting_class, self)(torch.eye(len(tasks), dtype=torch.float64))
        except (ImportError, ValueError) as error:
            return [f"torchjd's {name}: {error}{hint}"]
        return []


@cache
def as_rule(found: type, path: str) -> type[GradientRule]:
    """Return a gradient rule that asks a weighting of torchjd; the same class each time.

    Its Config has the weighting's parameters that are numbers, booleans, texts, or literals, or optionally so; others
    keep their defaults.

    Args:
        found: the weighting's class.
        path: what the config calls it, ``package.module:Class``.

    Raises:
        ValueError: the class is none of the weightings that need the Gramian and nothing else.

    Example:
        >>> from torchjd.aggregation import KrumWeighting
        >>> krum = as_rule(KrumWeighting, "torchjd.aggregation:KrumWeighting")
        >>> rule = krum(krum.Config(n_byzantine=0), ["click", "like", "watch"])
        >>> rule.weights(torch.eye(3).unsqueeze(0), torch.zeros(3)).sum()
        tensor(1.)
    """
    if reason := _refusal(found):
        raise ValueError(f"'{path}' is no rule: {reason}")
    config = create_model(  # type: ignore[call-overload]
        f"{found.__name__}Config",
        __base__=WeightingConfig,
        __module__=__name__,
        __doc__=f"Options of torchjd's {found.__name__}.",
        type=(str, path),
        **_options(found, path),
    )
    config.weighting_class = found
    attributes = {
        "Config": config,
        "weighting_class": found,
        "__doc__": f"torchjd's {found.__name__}.",
        "__module__": __name__,
    }
    return type(f"{found.__name__}Rule", (WeightingRule,), attributes)


def _refusal(found: type) -> str:
    """Return why a class of torchjd cannot be a rule, or nothing."""
    name, built_in = found.__name__, _BUILT_IN.get(found.__name__.removesuffix("Weighting"))
    if issubclass(found, Aggregator):
        return f"{name} is an aggregator, which wants the tasks' whole gradients; use {_instead(name)}"
    if not issubclass(found, Weighting) or inspect.isabstract(found):
        return f"{name} is no weighting of torchjd"
    if _MatrixWeighting in found.__mro__ and not issubclass(found, _COUNT_ROWS):
        return (
            f"{name} wants another statistic than the Gramian of one batch, such as the products of two batches; use a "
            "weighting that torchjd describes as Weighting[PSDMatrix]"
        )
    if Stateful in found.__mro__:
        instead = f"the built-in '{built_in}'" if built_in else "a rule of your own that keeps its state in buffers"
        return f"{name} remembers what a checkpoint would not hold; use {instead}"
    return ""


def _instead(aggregator: str) -> str:
    if aggregator in _BUILT_IN:
        return f"the built-in '{_BUILT_IN[aggregator]}'"
    weighting = getattr(torchjd.aggregation, f"{aggregator}Weighting", None)
    if weighting is None or _refusal(weighting):
        return "one of the built-in rules"
    return f"torchjd.aggregation:{aggregator}Weighting"


def _options(found: type, path: str) -> dict[str, tuple[object, object]]:
    """Return the fields for a weighting's parameters: name -> (annotation, default).

    Raises:
        ValueError: a parameter without default cannot be written in a config, or has the name of an option of rules.
    """
    fields: dict[str, tuple[object, object]] = {}
    for name, parameter in inspect.signature(found, eval_str=True).parameters.items():
        annotation, required = _plain(parameter.annotation), parameter.default is inspect.Parameter.empty
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if annotation is None and required:
            raise ValueError(
                f"'{path}' is no rule: {found.__name__} needs '{name}' ("
                f"{inspect.formatannotation(parameter.annotation)}), which no config can hold; derive a class to set it"
            )
        if annotation is None:
            continue
        if name in RuleConfig.model_fields:
            raise ValueError(
                f"'{path}' is no rule: its parameter '{name}' has the name of an option that all rules share; derive "
                "a class from it that calls it otherwise"
            )
        fields[name] = (annotation, ... if required else parameter.default)
    return fields


def _plain(annotation: object) -> object:
    """Return what of an annotation a config can hold, or None."""
    if annotation in _PLAIN or get_origin(annotation) is Literal:
        return annotation
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    members = get_args(annotation)
    plain = [member for member in members if _plain(member) is not None]
    if not plain:
        return None
    return Union[(*plain, *([type(None)] if type(None) in members else []))]


def _make(weighting_class: type[Weighting[Any]], config: RuleConfig) -> Weighting[Any]:
    own = set(type(config).model_fields) - set(RuleConfig.model_fields)
    given: Mapping[str, Any] = {name: getattr(config, name) for name in own}
    return weighting_class(**given)
