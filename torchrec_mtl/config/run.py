"""The whole of a run: what one YAML holds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from torchrec_mtl.config.base import Config, Name, PluginConfig
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.init_from import InitFromConfig
from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.config.training import OptimConfig, TrainConfig


class RunConfig(Config):
    """A run: data, features, tasks, bottom, head, gradient rule, optimizers."""

    data: DataConfig
    features: FeaturesConfig
    tasks: Annotated[tuple[TaskConfig, ...], Field(min_length=1)]
    """In causal order."""
    bottom: SerializeAsAny[PluginConfig]
    """Features to a representation; by default concat."""
    head: SerializeAsAny[PluginConfig]
    """Representation to one prediction a task."""
    gradient: SerializeAsAny[PluginConfig]
    """How the tasks' gradients are combined; by default sum."""
    retrieval: RetrievalConfig | None = None
    """Evaluations search a corpus of items, too; of heads that retrieve, such as dmmp."""
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    init_from: InitFromConfig | None = None
    """An earlier run that this one starts from, where it begins anew; its run_dir alone will do."""
    run_dir: Name
    """Folder of everything the run writes; the same command goes on from there."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in causal order."""
        return tuple(task.name for task in self.tasks)
