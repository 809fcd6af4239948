"""The promises of a bottom, each checked by a function of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.features import Features, Jagged
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.registry import resolve
from torchrec_mtl.testing.subject import Subject, at_step, feature_leaves, gradients_of, take, weighted

# Shapes: B rows, D representation, K tasks.

_TOLERANCE = 1.0e-4


def check_bottom(
    bottom_class: type[Bottom], config: PluginConfig | None = None, *, tasks: Sequence[str] = ("click", "watch_time")
) -> None:
    """Check that a bottom keeps its promises; call it in a test of your own bottom.

    It returns [B, D], D the ``out_features`` that it says, and one a task where it says ``per_task``, finite for zero
    and large embeddings and for rows without any history; a row depends on that row alone when evaluating, and on no
    padding when training; random numbers come from ``features.noise``; a state dict carries what it learned; it hands
    the features on untouched, for heads that read them; a config can name it. The features are two ids, a pooled list,
    a sequence that names one of the ids as its target, and three dense columns.

    Args:
        bottom_class: the class, at the top level of a module.
        config: options; by default the class's own.
        tasks: names, at least two.

    Raises:
        AssertionError: says which promise is broken.

    Example:
        >>> from torchrec_mtl import Concat
        >>> check_bottom(Concat, Concat.Config(pooling="sum"))
    """
    config = bottom_class.Config(type=bottom_class.__name__) if config is None else config
    subject = _Subject(bottom_class, config, tuple(tasks))
    _check_class(subject)
    for check in (_check_outputs, _check_rows, _check_noise, _check_padding, _check_state, _check_reach):
        check(subject)


class _Subject:
    def __init__(self, bottom_class: type[Bottom], config: PluginConfig, tasks: tuple[str, ...]) -> None:
        self.bottom_class, self.config, self.tasks = bottom_class, config, tasks
        head = SharedBottom.Config()
        self.source = Subject(SharedBottom, head, dict.fromkeys(tasks, 1), 1)

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise AssertionError(f"{self.bottom_class.__name__} {message}")

    def inputs(self, num_rows: int = 8, *, scale: float = 1.0) -> Representation:
        return self.source.inputs(num_rows, scale=scale, per_task=False)

    def build(self, seed: int = 0) -> Bottom:
        spec = _features(self.inputs()).spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.bottom_class(spec, self.tasks, self.config)


def _check_class(subject: _Subject) -> None:
    bottom_class = subject.bottom_class
    subject.require(issubclass(bottom_class, Bottom), "is no subclass of torchrec_mtl.Bottom")
    path = f"{bottom_class.__module__}:{bottom_class.__qualname__}"
    try:
        found = resolve("bottom", path)
    except ValueError as error:
        raise AssertionError(f"{bottom_class.__name__} cannot be named in a config: {error}") from error
    subject.require(found is bottom_class, f"cannot be named in a config: '{path}' is another class")
    same = all(map(torch.equal, subject.build().state_dict().values(), subject.build().state_dict().values()))
    subject.require(same, "is built with other parameters from the same torch seed, so that ranks would start apart")


def _check_outputs(subject: _Subject) -> None:
    bottom = subject.build()
    for training in (True, False):
        for scale, what in ((0.0, "zero"), (1.0, "normal"), (1.0e4, "large")):
            features = _features(subject.inputs(scale=scale))
            _check_output(subject, bottom.train(training), features, f"for {what} embeddings")
        _check_output(subject, bottom, _without_histories(_features(subject.inputs())), "for rows without history")
    _check_output(subject, bottom, _features(subject.inputs(1)), "for a single row")


def _check_output(subject: _Subject, bottom: Bottom, features: Features, when: str) -> None:
    out = bottom(features)
    subject.require(isinstance(out, Representation), f"returns {type(out).__name__} instead of Representation")
    expected = (features.dense.shape[0], bottom.out_features)
    views = {"shared": out.shared, **_views(out)}
    subject.require(
        (out.per_task is not None) == bottom.per_task,
        f"says per_task = {bottom.per_task} and returns {'one a task' if out.per_task is not None else 'one for all'}",
    )
    count = len(views) - 1
    right = not bottom.per_task or count == len(subject.tasks)
    subject.require(right, f"returns {count} representations for {len(subject.tasks)} tasks")
    for name, view in views.items():
        found = tuple(view.shape)
        subject.require(found == expected, f"returns '{name}' of shape {found}, expected [B, D] = {expected}, {when}")
        subject.require(bool(torch.isfinite(view).all()), f"returns a '{name}' that is not finite {when}")
    gradients = gradients_of(weighted(out.shared), _leaves(features))
    finite = all(bool(torch.isfinite(g).all()) for g in gradients)
    subject.require(finite, f"has gradients that are not finite {when}")
    subject.require(
        out.features is features, "does not hand its features on; return Representation(..., features=features)"
    )


def _check_rows(subject: _Subject) -> None:
    bottom, inputs = subject.build().eval(), subject.inputs(16)
    before = {name: value.clone() for name, value in bottom.named_buffers()}
    whole = _run(bottom, inputs)
    again = _run(bottom, inputs, torch_seed=1)
    subject.require(_close(whole, again, exact=True), "gives other values for the same features when evaluated twice")
    for rows in ([*range(15, -1, -1)], [3, 9, 4], [7]):
        part = _run(bottom, take(inputs, rows))
        expected = {name: view[torch.tensor(rows)] for name, view in whole.items()}
        subject.require(_close(part, expected), "lets a row in evaluation depend on the other rows of the batch")
    kept = all(torch.equal(value, before[name]) for name, value in bottom.named_buffers())
    subject.require(kept, "changes its buffers in evaluation")


def _check_noise(subject: _Subject) -> None:
    inputs = subject.inputs()
    one, other = (_run(subject.build(), inputs, torch_seed=seed) for seed in (1, 2))
    remedy = "take random numbers from `features.noise`, which resumes and reshards exactly"
    subject.require(_close(one, other, exact=True), f"draws from torch's generator in training; {remedy}")
    bottom = subject.build().eval()
    quiet = _close(_run(bottom, inputs), _run(bottom, at_step(inputs, 1)), exact=True)
    subject.require(quiet, "uses `features.noise` in evaluation, so that a score depends on the step")


def _check_padding(subject: _Subject) -> None:
    valid = torch.tensor([1.0, 1, 0, 1, 1, 0])
    inputs, seen = subject.inputs(10), []
    for rows in ([0, 1, 2, 3, 4, 5], [0, 1, 6, 3, 4, 7]):
        bottom = subject.build()
        views = _run(bottom, take(inputs, rows, valid))
        seen.append({name: view[valid.bool()] for name, view in views.items()} | dict(bottom.named_buffers()))
    remedy = "hand `features.valid` to the norms"
    subject.require(_close(*seen), f"lets padding rows (features.valid = 0) change other rows in training; {remedy}")


def _check_state(subject: _Subject) -> None:
    trained, loaded, inputs = subject.build(), subject.build(seed=1), subject.inputs()
    trained(_features(inputs))
    loaded.load_state_dict(trained.state_dict())
    same = _close(_run(trained.eval(), inputs), _run(loaded.eval(), inputs), exact=True)
    subject.require(same, "gives other values after its state dict is loaded into a new one; keep state in buffers")


def _check_reach(subject: _Subject) -> None:
    inputs = subject.inputs(16)
    out = subject.build()(_features(inputs))
    total = torch.stack([weighted(view) for view in (out.shared, *_views(out).values())]).sum()
    reached = any(bool((g != 0).any()) for g in gradients_of(total, feature_leaves(inputs)))
    subject.require(reached, "sends no gradient to any feature")


def _leaves(features: Features) -> list[Tensor]:
    """Return the embeddings and dense columns."""
    return [*features.fields.values(), *(s.values for s in features.sequences.values()), features.dense]


def _features(inputs: Representation) -> Features:
    assert inputs.features is not None
    return inputs.features


def _without_histories(features: Features) -> Features:
    empty = {
        name: Jagged(s.values.detach()[:0].requires_grad_(), torch.zeros_like(s.lengths))
        for name, s in features.sequences.items()
    }
    return dataclasses.replace(features, sequences=empty)


def _views(out: Representation) -> dict[str, Tensor]:
    return {f"task {k}": view for k, view in enumerate(out.per_task if out.per_task is not None else ())}


def _run(bottom: Bottom, inputs: Representation, torch_seed: int = 0) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(torch_seed)
        out = bottom(_features(inputs))
    return {"shared": out.shared, **_views(out)}


def _close(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, exact: bool = False) -> bool:
    tolerance = 0.0 if exact else _TOLERANCE
    return set(a) == set(b) and all(torch.allclose(a[n], b[n], rtol=tolerance, atol=tolerance / 10) for n in a)
