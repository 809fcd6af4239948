"""From a ``type`` in the config to a class: built-in name, installed entry point, or ``package.module:Class``."""

from __future__ import annotations

import ast
import importlib
import os
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from torchrec_mtl.config.base import PluginConfig, did_you_mean

Kind = Literal["head", "bottom", "loss", "rule", "sink"]

# Paths, not classes: the command line lists names without importing torch.
BUILT_IN: dict[Kind, dict[str, str]] = {
    "head": {
        "single_task": "torchrec_mtl.heads.single_task:SingleTask",
        "shared_bottom": "torchrec_mtl.heads.shared_bottom:SharedBottom",
        "mmoe": "torchrec_mtl.heads.mmoe:MMoE",
        "stem": "torchrec_mtl.heads.stem:STEM",
        "pepnet": "torchrec_mtl.heads.pepnet:PEPNet",
        "home": "torchrec_mtl.heads.home:HoME",
        "adatt": "torchrec_mtl.heads.adatt:AdaTT",
        "ple": "torchrec_mtl.heads.ple:PLE",
        "esmm": "torchrec_mtl.heads.esmm:ESMM",
        "escm2": "torchrec_mtl.heads.escm2:ESCM2",
        "aitm": "torchrec_mtl.heads.aitm:AITM",
        "dbmtl": "torchrec_mtl.heads.dbmtl:DBMTL",
        "htlnet": "torchrec_mtl.heads.htlnet:HTLNet",
        "ncs4cvr": "torchrec_mtl.heads.ncs4cvr:NCS4CVR",
        "dmmp": "torchrec_mtl.heads.dmmp:DMMP",
    },
    "bottom": {
        "concat": "torchrec_mtl.bottoms.concat:Concat",
        "epnet": "torchrec_mtl.bottoms.epnet:EPNet",
        "inner_product": "torchrec_mtl.bottoms.inner_product:InnerProduct",
        "dcn": "torchrec_mtl.bottoms.dcn:DCN",
        "din": "torchrec_mtl.bottoms.din:DIN",
        "dtrn": "torchrec_mtl.bottoms.dtrn:DTRN",
    },
    "loss": {
        "bce": "torchrec_mtl.losses.binary:BinaryCrossEntropy",
        "focal": "torchrec_mtl.losses.binary:Focal",
        "mse": "torchrec_mtl.losses.regression:MeanSquaredError",
        "mae": "torchrec_mtl.losses.regression:MeanAbsoluteError",
        "huber": "torchrec_mtl.losses.regression:Huber",
        "quantile": "torchrec_mtl.losses.regression:Quantile",
        "ratio": "torchrec_mtl.losses.ratio:Ratio",
        "tweedie": "torchrec_mtl.losses.deviance:Tweedie",
        "gamma": "torchrec_mtl.losses.deviance:Gamma",
        "poisson": "torchrec_mtl.losses.deviance:Poisson",
        "lognormal": "torchrec_mtl.losses.lognormal:LogNormal",
        "zero_inflated_lognormal": "torchrec_mtl.losses.lognormal:ZeroInflatedLogNormal",
        "ordinal": "torchrec_mtl.losses.ordinal:Ordinal",
    },
    "rule": {
        "sum": "torchrec_mtl.gradients.sum:SumRule",
        "htlnet": "torchrec_mtl.gradients.htlnet:HTLNetRule",
        "metabalance": "torchrec_mtl.gradients.metabalance:MetaBalanceRule",
        "gradnorm": "torchrec_mtl.gradients.gradnorm:GradNormRule",
        "uncertainty": "torchrec_mtl.gradients.uncertainty:UncertaintyRule",
        "dwa": "torchrec_mtl.gradients.dwa:DWARule",
        "famo": "torchrec_mtl.gradients.famo:FAMORule",
        "pcgrad": "torchrec_mtl.gradients.torchjd_built_in:PCGradRule",
        "gradvac": "torchrec_mtl.gradients.torchjd_built_in:GradVacRule",
        "cagrad": "torchrec_mtl.gradients.cagrad:CAGradRule",
        "mgda": "torchrec_mtl.gradients.mgda:MGDARule",
        "imtl": "torchrec_mtl.gradients.torchjd_built_in:IMTLRule",
        "aligned": "torchrec_mtl.gradients.torchjd_built_in:AlignedRule",
        "upgrad": "torchrec_mtl.gradients.upgrad:UPGradRule",
    },
    "sink": {},
}

_GROUPS: dict[Kind, str] = {
    "head": "torchrec_mtl.heads",
    "bottom": "torchrec_mtl.bottoms",
    "loss": "torchrec_mtl.losses",
    "rule": "torchrec_mtl.rules",
    "sink": "torchrec_mtl.sinks",
}

# What a class of each kind has, by its contract, and those of other kinds have not.
_MARKS: dict[Kind, str] = {"head": "phases", "bottom": "per_task", "loss": "kinds", "rule": "needs", "sink": "write"}


SWITCH = "TORCHREC_MTL_PLUGINS"
"""Environment variable: ``off`` refuses code that a config names: dotted paths, and the script of ``data.prepare``."""


def check_switch(what: str) -> None:
    """Let a config bring code of its own in, or refuse it; a value that nobody knows refuses, too.

    Args:
        what: it names, for the message.

    Raises:
        ValueError: the environment variable ``TORCHREC_MTL_PLUGINS`` is set, and not to ``on``.
    """
    value = os.environ.get(SWITCH, "")
    if value.lower() not in {"", "on"}:
        raise ValueError(
            f"{what} is code that the config brings in, and {SWITCH}={value} refuses that; "
            f"unset {SWITCH} if you trust it"
        )


@cache
def _installed(group: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=group)}


def names(kind: Kind) -> dict[str, str]:
    """Return every name known for ``kind`` with the path of its class; installed plug-ins included."""
    return {**_installed(_GROUPS[kind]), **BUILT_IN[kind]}


def listing(kind: Kind) -> list[tuple[str, str]]:
    """Return every known name and one line on it, without importing any plug-in.

    The line is the first of a built-in class's docstring, and the path of an installed plug-in.

    Example:
        >>> listing("bottom")[0]
        ('concat', 'Concatenate all fields, the pooled sequences, and the dense columns.')
    """
    built_in = BUILT_IN[kind]
    lines = [(name, _summary(path)) for name, path in built_in.items()]
    return lines + [(name, path) for name, path in sorted(names(kind).items()) if name not in built_in]


def _summary(path: str) -> str:
    """Return the first line of a class's docstring, read from the source."""
    module, _, class_name = path.partition(":")
    package = Path(__file__).parent
    source = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def resolve(kind: Kind, reference: str) -> type[Any]:
    """Return the class that ``reference`` names.

    Raises:
        ValueError: the name is unknown, its module or attribute cannot be imported, or it is of another kind; or it is
            a dotted path, and these are switched off.
    """
    known = names(kind)
    path = known.get(reference, reference)
    module, separator, attribute = path.partition(":")
    if not separator:
        hint = (
            " A class of yours is written package.module:Class." if "." in reference else did_you_mean(reference, known)
        )
        raise ValueError(f"unknown {kind} '{reference}'.{hint}")
    if reference not in known:
        check_switch(f"{kind} '{reference}'")
    found = _import(kind, module, attribute)
    if kind == "rule" and _is_of_torchjd(found):
        from torchrec_mtl.gradients.torchjd_by_path import as_rule

        return as_rule(found, path)
    config = PluginConfig if kind == "sink" else getattr(found, "Config", None)  # sinks have no section of their own
    if not isinstance(found, type) or not isinstance(config, type) or not issubclass(config, PluginConfig):
        raise ValueError(
            f"'{path}' is no {kind}: it must be a class"
            f"{'' if kind == 'sink' else ' with a nested Config that derives from PluginConfig'}"
        )
    if not hasattr(found, _MARKS[kind]):
        raise ValueError(f"'{path}' is no {kind}: it has no attribute '{_MARKS[kind]}'; see the base class of its kind")
    return found


def _is_of_torchjd(found: object) -> bool:
    """Whether it is a class of torchjd's, or derives from one, and not a rule yet."""
    bases = found.__mro__ if isinstance(found, type) and not hasattr(found, "Config") else ()
    return any(base.__module__.partition(".")[0] == "torchjd" for base in bases)


def _import(kind: Kind, module: str, attribute: str) -> Any:  # noqa: ANN401
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(f"'{module}:{attribute}' names no {kind}; write package.module:Class")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        reason = f"{error}; install it, or put its folder on PYTHONPATH"
        raise ValueError(f"cannot import {kind} '{module}:{attribute}': {reason}") from error
    if not hasattr(found, attribute):
        known = [name for name, value in vars(found).items() if isinstance(value, type) and not name.startswith("_")]
        raise ValueError(f"'{module}' has no {kind} '{attribute}'.{did_you_mean(attribute, known)}")
    return getattr(found, attribute)
