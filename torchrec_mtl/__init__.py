"""Config-driven multi-task recommenders on the TorchRec stack.

The public names below are imported when they are first used: ``torchrec-mtl --help`` and TorchX read this package
and must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from torchrec_mtl.bottoms.base import Bottom, Representation
    from torchrec_mtl.bottoms.concat import Concat
    from torchrec_mtl.config.base import PluginConfig
    from torchrec_mtl.config.load import ConfigError, load_config
    from torchrec_mtl.features import Features, FeaturesSpec, Jagged
    from torchrec_mtl.findings import MatrixFinding, TableFinding
    from torchrec_mtl.gradients.base import GradientRule, RuleConfig
    from torchrec_mtl.gradients.boundary import Boundary
    from torchrec_mtl.gradients.hook import GradientHook
    from torchrec_mtl.gradients.htlnet import HTLNetRule
    from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput, Phase, PhaseEnd, Term
    from torchrec_mtl.heads.htlnet import HTLNet
    from torchrec_mtl.heads.layers import MLP
    from torchrec_mtl.heads.ncs4cvr import NCS4CVR
    from torchrec_mtl.heads.shared_bottom import SharedBottom
    from torchrec_mtl.heads.single_task import SingleTask
    from torchrec_mtl.heads.towers import Towers
    from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig
    from torchrec_mtl.model import MultiTaskModel, build_model
    from torchrec_mtl.multi_task_arch import MultiTaskArch

_PUBLIC = {
    "Bottom": "bottoms.base",
    "Boundary": "gradients.boundary",
    "Concat": "bottoms.concat",
    "ConfigError": "config.load",
    "Features": "features",
    "FeaturesSpec": "features",
    "GradientHook": "gradients.hook",
    "GradientRule": "gradients.base",
    "HTLNet": "heads.htlnet",
    "HTLNetRule": "gradients.htlnet",
    "Head": "heads.base",
    "HeadConfig": "heads.base",
    "HeadOutput": "heads.base",
    "Jagged": "features",
    "LabelScale": "losses.base",
    "Loss": "losses.base",
    "LossConfig": "losses.base",
    "MLP": "heads.layers",
    "MatrixFinding": "findings",
    "MultiTaskArch": "multi_task_arch",
    "MultiTaskModel": "model",
    "NCS4CVR": "heads.ncs4cvr",
    "Phase": "heads.base",
    "PhaseEnd": "heads.base",
    "PluginConfig": "config.base",
    "Representation": "bottoms.base",
    "RuleConfig": "gradients.base",
    "SharedBottom": "heads.shared_bottom",
    "SingleTask": "heads.single_task",
    "TableFinding": "findings",
    "Term": "heads.base",
    "Towers": "heads.towers",
    "build_model": "model",
    "load_config": "config.load",
}

__all__ = [
    "MLP",
    "NCS4CVR",
    "Bottom",
    "Boundary",
    "Concat",
    "ConfigError",
    "Features",
    "FeaturesSpec",
    "GradientHook",
    "GradientRule",
    "HTLNet",
    "HTLNetRule",
    "Head",
    "HeadConfig",
    "HeadOutput",
    "Jagged",
    "LabelScale",
    "Loss",
    "LossConfig",
    "MatrixFinding",
    "MultiTaskArch",
    "MultiTaskModel",
    "Phase",
    "PhaseEnd",
    "PluginConfig",
    "Representation",
    "RuleConfig",
    "SharedBottom",
    "SingleTask",
    "TableFinding",
    "Term",
    "Towers",
    "__version__",
    "build_model",
    "load_config",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'torchrec_mtl' has no attribute '{name}'")
    return getattr(importlib.import_module(f"torchrec_mtl.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
