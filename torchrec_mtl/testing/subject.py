"""What the checks of a head need: the head itself, inputs whose rows can be exchanged, and a small whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.embeddings import features_spec
from torchrec_mtl.features import Features, Jagged
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.heads.base import Head, HeadConfig
from torchrec_mtl.model import MultiTaskModel, build_model
from torchrec_mtl.noise import Noise

# Shapes: B rows, D width of the representation, K tasks.

_NUM_IDS = 20


@dataclass(frozen=True)
class Subject:
    """A head class under check."""

    head_class: type[Head]
    config: HeadConfig
    outputs: Mapping[str, int]
    in_features: int

    def require(self, condition: bool, message: str) -> None:
        """Raise an ``AssertionError`` that names the head unless ``condition`` holds."""
        if not condition:
            raise AssertionError(f"{self.head_class.__name__} {message}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.outputs)

    def build(self, seed: int = 0) -> Head:
        """Return a new head in training mode; torch's generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.head_class.create(
                self.in_features,
                self.outputs,
                self.config,
                features=features_spec(_features(), self.head_class.tables, self.tasks),
                binary=[str(task["name"]) for task in self.tasks_config() if task["kind"] == "binary"],
            )

    def inputs(self, num_rows: int = 8, *, seed: int = 0, scale: float = 1.0, per_task: bool = True) -> Representation:
        """Return normal numbers times ``scale``, all of them leaves.

        Args:
            num_rows: B.
            seed: of the numbers.
            scale: standard deviation.
            per_task: one representation [B, D] a task, different from ``shared``; heads with tables of their own always
                get that.
        """
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return (torch.randn(*shape, generator=g) * scale).requires_grad_()

        spec = features_spec(_features(), self.head_class.tables, self.tasks)
        lengths = [torch.randint(0, 5, (num_rows,), generator=g) for _ in spec.sequences]
        return Representation(
            shared=normal(num_rows, self.in_features),
            per_task=tuple(normal(num_rows, self.in_features) for _ in self.tasks)
            if per_task or self.head_class.tables != "shared"
            else None,
            features=Features(
                fields={f.name: normal(num_rows, f.dim) for f in spec.fields},
                sequences={s.name: Jagged(normal(int(n.sum()), s.dim), n) for s, n in zip(spec.sequences, lengths)},
                dense=normal(num_rows, len(spec.dense)),
                spec=spec,
                noise=Noise(seed, 0, torch.arange(num_rows), num_rows),
                valid=torch.ones(num_rows),
            ),
        )

    def tasks_config(self) -> list[dict[str, object]]:
        """Return tasks that the head takes, as a YAML gives them: the last a regression, or else all binary."""
        for last in ("regression", "binary"):
            kinds = [*["binary"] * (len(self.tasks) - 1), last]
            raw: list[dict[str, object]] = [
                {"name": name, "kind": kind, "label": name} for name, kind in zip(self.tasks, kinds)
            ]
            placeholder = PluginConfig(type="bce")
            problems = self.config.problems([TaskConfig.model_validate({**t, "loss": placeholder}) for t in raw])
            if not problems:
                return raw
        raise AssertionError(
            f"{self.head_class.__name__} refuses the tasks {', '.join(self.tasks)}: {'; '.join(problems)}"
        )

    def model(self, *, blocked_at: str | None = None) -> MultiTaskModel:
        """Return a whole model with plain tables and the head named by its path.

        Args:
            blocked_at: where a boundary lets nothing through, ``embeddings`` or ``representation``; None: no boundary.
        """
        path = f"{self.head_class.__module__}:{self.head_class.__qualname__}"
        raw = make_config("unused.parquet", run_dir="unused")
        raw["data"]["eval"] = raw["data"]["train"]
        raw["head"] = {**self.config.model_dump(mode="json"), "type": path}
        if blocked_at is not None:
            raw["gradient"] = {"type": f"{__name__}:{BlockingRule.__name__}", "at": blocked_at}
        raw["tasks"] = self.tasks_config()
        return build_model(parse(raw, source=path), {}, tables="cpu")

    def batch(self, num_rows: int = 8) -> Batch:
        """Return a batch for ``model``."""
        g = torch.Generator().manual_seed(0)
        features = _features()
        labels = torch.randint(0, 2, (num_rows, len(self.tasks)), generator=g).float()
        return Batch(
            dense=torch.randn(num_rows, len(features.dense), generator=g),
            sparse=_ids([f.name for f in features.pooled], num_rows, g),
            sequences=_ids([f.name for f in features.unpooled], num_rows, g),
            labels=labels,
            weights=torch.ones_like(labels),
            valid=torch.ones(num_rows),
            rows=torch.arange(num_rows),
            ids={},
            step=0,
            global_size=num_rows,
        )


def _features() -> FeaturesConfig:
    return FeaturesConfig.model_validate(make_config("", run_dir="")["features"])


def _ids(keys: list[str], num_rows: int, g: torch.Generator) -> KeyedJaggedTensor:
    lengths = torch.randint(1, 4, (len(keys) * num_rows,), generator=g)
    values = torch.randint(0, _NUM_IDS, (int(lengths.sum()),), generator=g)
    return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths)


def take(inputs: Representation, rows: Sequence[int], valid: Tensor | None = None) -> Representation:
    """Return some rows, as new leaves; their noise goes with them.

    Args:
        inputs: B rows.
        rows: positions, length R.
        valid: [R], 1 for rows of data; None: all.
    """
    index = torch.tensor(rows)
    features = inputs.features
    assert features is not None
    assert features.noise is not None
    return Representation(
        shared=_leaf(inputs.shared[index]),
        per_task=None if inputs.per_task is None else tuple(_leaf(x[index]) for x in inputs.per_task),
        features=dataclasses.replace(
            features,
            fields={name: _leaf(x[index]) for name, x in features.fields.items()},
            sequences={name: _take_jagged(x, rows) for name, x in features.sequences.items()},
            dense=_leaf(features.dense[index]),
            noise=dataclasses.replace(features.noise, rows=features.noise.rows[index]),
            valid=torch.ones(len(rows)) if valid is None else valid,
        ),
    )


def at_step(inputs: Representation, step: int) -> Representation:
    """Return the same inputs with the noise of another step."""
    features = inputs.features
    assert features is not None
    assert features.noise is not None
    noise = dataclasses.replace(features.noise, step=step)
    return dataclasses.replace(inputs, features=dataclasses.replace(features, noise=noise))


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _take_jagged(x: Jagged, rows: Sequence[int]) -> Jagged:
    pieces = torch.split(x.values, x.lengths.tolist())
    return Jagged(_leaf(torch.cat([pieces[i] for i in rows])), x.lengths[torch.tensor(rows)])


def feature_leaves(inputs: Representation) -> list[Tensor]:
    """Return the tensors of ``inputs.features``."""
    features = inputs.features
    assert features is not None
    return [*features.fields.values(), *(s.values for s in features.sequences.values()), features.dense]


def view_leaves(inputs: Representation) -> list[Tensor]:
    """Return the tensors of the representation itself."""
    assert not isinstance(inputs.per_task, Tensor), "the rows of one tensor are no leaves"
    return [inputs.shared, *(inputs.per_task or ())]


def weighted(z: Tensor) -> Tensor:
    """Return a sum in which no two rows count alike, so that nothing cancels."""
    return (z * torch.linspace(0.5, 1.5, z.numel()).view_as(z)).sum()


def gradients_of(loss: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of the leaves, zeros for those that the loss does not reach."""
    return torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)


class BlockingRule(GradientRule):
    """Every task weighs 0: nothing passes the boundary."""

    needs = "gramian"

    class Config(RuleConfig):
        """No options."""

    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return zeros [K]."""
        return torch.zeros_like(losses)
