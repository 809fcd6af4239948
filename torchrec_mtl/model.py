"""Tables below, everything else in one dense leaf above: `MultiTaskModel` is `Embeddings` and `Objective`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Bottom
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.consistency import Consistency
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.embeddings import Embeddings, FeatureReader
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.heads.base import Head, HeadConfig
from torchrec_mtl.losses.base import LabelScale, Loss
from torchrec_mtl.objective import Objective, StepOutput
from torchrec_mtl.registry import resolve


class MultiTaskModel(nn.Module):
    """The whole model: ``embeddings``, to be sharded, and ``objective``, a dense leaf."""

    def __init__(self, embeddings: Embeddings, objective: Objective) -> None:
        """Put the two together."""
        super().__init__()
        self.embeddings = embeddings
        self.objective = objective

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        """Return (losses [T], output). Traced by TorchRec's pipelines: no logic here."""
        pooled, unpooled = self.embeddings(batch)
        losses_and_output: tuple[Tensor, StepOutput] = self.objective(pooled, unpooled, batch)
        return losses_and_output


def build_model(
    config: RunConfig, scales: Mapping[str, LabelScale], *, device: torch.device | str = "cpu", tables: str = "meta"
) -> MultiTaskModel:
    """Build a model from a config.

    Args:
        config: the run.
        scales: label statistics by task.
        device: of the dense part, drawn from ``train.seed``.
        tables: device of the embedding tables; ``meta`` where they will be sharded.
    """
    head_class: type[Head] = resolve("head", config.head.type)
    bottom_class: type[Bottom] = resolve("bottom", config.bottom.type)
    reader = FeatureReader(config.features, head_class.tables, config.task_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)  # for losses and rules of plug-ins, too: all ranks draw the same
        losses: dict[str, Loss] = {
            t.name: resolve("loss", t.loss.type)(t.loss, scales.get(t.name, LabelScale())) for t in config.tasks
        }
        bottoms = _build_bottoms(bottom_class, head_class, reader, config)
        outputs = {name: loss.num_outputs for name, loss in losses.items()}
        head = head_class.create(
            bottoms[0].out_features,
            outputs,
            cast(HeadConfig, config.head),
            features=reader.spec,
            binary=[task.name for task in config.tasks if task.kind == "binary"],
        )
        names = (*config.task_names, *head.term_names)
        gradient = cast(RuleConfig, config.gradient)
        rule_class: type[GradientRule] = resolve("rule", gradient.type)
        by_table = rule_class.groups == "table" and gradient.at == "embeddings"
        rule = rule_class(gradient, names, len(reader.shared_tables) if by_table else 1)
    consistency = Consistency(config.tasks)
    objective = Objective(
        reader=reader,
        bottoms=bottoms,
        head=head,
        losses=losses,
        task_weights=[t.weight for t in config.tasks],
        consistency=consistency,
        rule=rule,
        at_representation=gradient.at == "representation",
        seed=config.train.seed,
        exact=gradient.exact,
        precision=config.train.precision,
    )
    embeddings = Embeddings(config.features, head_class.tables, config.task_names, device=tables)
    if gradient.exact == "dense":
        objective.boundary.tables = embeddings.parameters_of(reader.shared_tables)
    return MultiTaskModel(embeddings, objective.to(device))


def _build_bottoms(
    bottom_class: type[Bottom], head_class: type[Head], reader: FeatureReader, config: RunConfig
) -> list[Bottom]:
    if head_class.tables == "shared":
        return [bottom_class(reader.spec, config.task_names, config.bottom)]
    own = [bottom_class(reader.spec.select(task=name), (name,), config.bottom) for name in config.task_names]
    if head_class.tables == "own":
        return own
    return [bottom_class(reader.spec.select(shared=True), config.task_names, config.bottom), *own]
