"""From a ``type`` in the config to a class: built-in name, installed entry point, or ``package.module:Class``."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any, Literal

from torchrec_mtl.config.base import did_you_mean

Kind = Literal["head", "bottom", "loss", "rule"]

# Paths, not classes: the command line lists names without importing torch.
BUILT_IN: dict[str, dict[str, str]] = {
    "head": {
        "single_task": "torchrec_mtl.heads.single_task:SingleTask",
        "shared_bottom": "torchrec_mtl.heads.shared_bottom:SharedBottom",
        "htlnet": "torchrec_mtl.heads.htlnet:HTLNet",
    },
    "bottom": {"concat": "torchrec_mtl.bottoms.concat:Concat"},
    "loss": {
        "bce": "torchrec_mtl.losses.binary:BinaryCrossEntropy",
        "focal": "torchrec_mtl.losses.binary:Focal",
        "mse": "torchrec_mtl.losses.regression:MeanSquaredError",
        "huber": "torchrec_mtl.losses.regression:Huber",
    },
    "rule": {
        "sum": "torchrec_mtl.gradients.sum:SumRule",
        "htlnet": "torchrec_mtl.gradients.htlnet:HTLNetRule",
    },
}

_GROUPS: dict[str, str] = {
    "head": "torchrec_mtl.heads",
    "bottom": "torchrec_mtl.bottoms",
    "loss": "torchrec_mtl.losses",
    "rule": "torchrec_mtl.rules",
}


def names(kind: Kind) -> dict[str, str]:
    """Return every name known for ``kind`` with the path of its class; installed plug-ins included."""
    installed = {point.name: point.value for point in entry_points(group=_GROUPS[kind])}
    return {**installed, **BUILT_IN[kind]}


def resolve(kind: Kind, reference: str) -> type[Any]:
    """Return the class that ``reference`` names.

    Raises:
        ValueError: the name is unknown, or its module or attribute cannot be imported.
    """
    known = names(kind)
    path = known.get(reference, reference)
    module_name, separator, attribute = path.partition(":")
    if not separator:
        raise ValueError(f"unknown {kind} '{reference}'.{did_you_mean(reference, known)}")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {kind} '{path}': {error}") from error
    if not isinstance(found, type) or not hasattr(found, "Config"):
        raise ValueError(f"{kind} '{path}' is not a class with a nested Config")
    return found
