"""The promises of a head, each checked by a function of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput, Term
from torchrec_mtl.registry import resolve
from torchrec_mtl.testing.subject import Subject, feature_leaves, take, view_leaves

# Shapes: B rows, K tasks, P logits of a task.

_LARGE = 1.0e4
_TOLERANCE = 1.0e-4


def check_head(
    head_class: type[Head],
    config: HeadConfig | None = None,
    *,
    outputs: Mapping[str, int] | Sequence[str] = ("click", "long_view", "watch_time"),
    in_features: int = 12,
) -> None:
    """Check that a head keeps its promises; call it in a test of your own head.

    It returns logits of the right names and shapes, finite for zero and for large inputs; a row's scores depend on that row
    alone when evaluating, and on no padding when training; random numbers come from ``features.noise``, everything else from
    inputs, parameters, and buffers, which a state dict carries; ``isolates_tasks``, ``reads_features``, and ``term_names``
    say the truth; in a whole model, all gradients of shared tables cross the boundary.

    Args:
        head_class: the class; a config must be able to name it, so it stands at the top level of a module.
        config: options; by default the class's own.
        outputs: task -> number of logits, in causal order; a sequence of names means one each.
        in_features: width of the representation.

    Raises:
        AssertionError: says which promise is broken.

    Example:
        >>> from torchrec_mtl.heads.shared_bottom import SharedBottom
        >>> check_head(SharedBottom, SharedBottom.Config(norm="batch"))
    """
    widths = dict(outputs) if isinstance(outputs, Mapping) else dict.fromkeys(outputs, 1)
    config = head_class.Config(type=head_class.__name__) if config is None else config
    subject = Subject(head_class, config, widths, in_features)
    for check in (
        _check_construction,
        _check_outputs,
        _check_evaluation_is_deterministic,
        _check_rows_are_independent,
        _check_randomness_comes_from_noise,
        _check_progress,
        _check_state,
        _check_terms,
        _check_padding_changes_nothing,
        _check_phases,
        _check_reach,
        _check_tables,
    ):
        check(subject)


def _check_construction(subject: Subject) -> None:
    head_class = subject.head_class
    subject.require(issubclass(head_class, Head), "is no subclass of torchrec_mtl.heads.base.Head")
    subject.require(issubclass(head_class.Config, HeadConfig), "has a Config that is no subclass of HeadConfig")
    head, again = subject.build(), subject.build()
    found = getattr(head, "outputs", None)
    subject.require(found == dict(subject.outputs), f"does not keep the tasks it was built for: outputs is {found}")
    subject.require(
        _equal(head.state_dict(), again.state_dict()),
        "is built with other parameters from the same torch seed, so that ranks would start apart",
    )


def _check_outputs(subject: Subject) -> None:
    for training in (True, False):
        for per_task in (True, False):
            for scale, what in ((0.0, "zero"), (1.0, "normal"), (_LARGE, "large")):
                inputs = subject.inputs(scale=scale, per_task=per_task)
                _check_output(subject, inputs, f"for {what} inputs in {'training' if training else 'evaluation'}", training)
    _check_output(subject, subject.inputs(1), "for a single row in evaluation", training=False)


def _check_output(subject: Subject, inputs: Representation, when: str, training: bool) -> None:
    head = subject.build().train(training)
    head.set_progress(0.5, 50)
    out = head(inputs)
    subject.require(isinstance(out, HeadOutput), f"returns {type(out).__name__} instead of HeadOutput")
    subject.require(
        set(out.logits) == set(subject.tasks), f"returns logits for {sorted(out.logits)}, tasks are {sorted(subject.tasks)}"
    )
    num_rows = inputs.shared.shape[0]
    for task, width in subject.outputs.items():
        expected = (num_rows,) if width == 1 else (num_rows, width)
        found = tuple(out.logits[task].shape)
        subject.require(found == expected, f"returns logits of shape {found} for '{task}', expected {expected}, {when}")
    for name, value in {**out.logits, **out.predictions, **out.penalties}.items():
        subject.require(bool(torch.isfinite(value).all()), f"returns a '{name}' that is not finite {when}")
    for name, value in out.predictions.items():
        subject.require(tuple(value.shape) == (num_rows,), f"returns prediction '{name}' of shape {tuple(value.shape)}")
    for name, value in out.penalties.items():
        subject.require(value.dim() == 0, f"returns penalty '{name}' of shape {tuple(value.shape)}, expected a scalar")
    leaves = [*head.parameters(), *view_leaves(inputs), *feature_leaves(inputs)]
    gradients = _gradients(sum(out.logits[t].sum() for t in subject.tasks), leaves)
    finite = all(bool(torch.isfinite(g).all()) for g in gradients)
    subject.require(finite, f"has gradients that are not finite {when}")


def _check_evaluation_is_deterministic(subject: Subject) -> None:
    head, inputs = subject.build().eval(), subject.inputs()
    before = _copy(dict(head.named_buffers()))
    first, second = _logits(head, inputs, torch_seed=1), _logits(head, inputs, torch_seed=2)
    subject.require(_equal(first, second), "gives other logits for the same inputs when evaluated twice")
    subject.require(_equal(before, dict(head.named_buffers())), "changes its buffers in evaluation")


def _check_rows_are_independent(subject: Subject) -> None:
    head = subject.build().eval()
    for per_task in (True, False):
        inputs = subject.inputs(16, per_task=per_task)
        whole = _logits(head, inputs)
        for rows in ([*range(15, -1, -1)], [3, 9, 4], [7]):
            part = _logits(head, take(inputs, rows))
            expected = {task: z[torch.tensor(rows)] for task, z in whole.items()}
            subject.require(
                _close(part, expected),
                "lets a row's logits in evaluation depend on the other rows of the batch, or on its place among them",
            )


def _check_padding_changes_nothing(subject: Subject) -> None:
    valid = torch.tensor([1.0, 1, 0, 1, 1, 0])
    inputs = subject.inputs(10)
    seen = []
    for rows in ([0, 1, 2, 3, 4, 5], [0, 1, 6, 3, 4, 7]):
        head, batch = subject.build(), take(inputs, rows, valid)
        head.set_progress(0.5, 50)
        out = head(batch)
        keep = valid.bool()
        logits = {task: z[keep] for task, z in out.logits.items()}
        terms = head.terms(out, *_labels_and_weights(subject, valid))
        loss = sum(_weighted(z) for z in logits.values()) + sum((t.value * t.weight).sum() for t in terms.values())
        views = [g[keep] for g in _gradients(loss, view_leaves(batch))]
        parameters = _gradients(loss, list(head.parameters()))
        seen.append((logits, views, parameters, dict(head.named_buffers())))
    (logits, views, parameters, buffers), (logits2, views2, parameters2, buffers2) = seen
    text = "lets padding rows (features.valid = 0) change {} in training; hand `representation.valid` to the norms"
    subject.require(_close(logits, logits2), text.format("other rows' logits"))
    subject.require(_close(buffers, buffers2), text.format("its buffers"))
    subject.require(_all_close(views, views2), text.format("other rows' gradients"))
    subject.require(_all_close(parameters, parameters2), text.format("the gradients of its parameters"))


def _check_randomness_comes_from_noise(subject: Subject) -> None:
    inputs = subject.inputs()
    seen = []
    for torch_seed in (1, 2):
        head = subject.build()
        head.set_progress(0.5, 50)
        seen.append((_logits(head, inputs, torch_seed), dict(head.named_buffers())))
    (logits, buffers), (logits2, buffers2) = seen
    remedy = "take random numbers from `representation.features.noise`, which resumes and reshards exactly"
    subject.require(_equal(logits, logits2), f"draws from torch's generator in training; {remedy}")
    subject.require(_equal(buffers, buffers2), f"has buffers that depend on more than the inputs; {remedy}")


def _check_progress(subject: Subject) -> None:
    gone_far, fresh = subject.build(), subject.build()
    for fraction, step in ((0.0, 0), (0.5, 50), (1.0, 100), (0.25, 25)):
        gone_far.set_progress(fraction, step)
    fresh.set_progress(0.25, 25)
    same = _equal(gone_far.state_dict(), fresh.state_dict()) and _same_in_both_modes(subject, gone_far, fresh)
    subject.require(same, "has a set_progress that depends on earlier calls, which a resumed run does not repeat")


def _check_state(subject: Subject) -> None:
    trained, loaded = subject.build(seed=0), subject.build(seed=1)
    trained.set_progress(0.75, 75)
    trained(subject.inputs(seed=1))
    loaded.load_state_dict(trained.state_dict())
    subject.require(
        _same_in_both_modes(subject, trained, loaded),
        "gives other logits after its state dict is loaded into a new head; keep state in parameters or persistent buffers",
    )


def _check_terms(subject: Subject) -> None:
    head, inputs = subject.build(), subject.inputs()
    valid = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])
    labels, weights = _labels_and_weights(subject, valid)
    terms = head.terms(head(inputs), labels, weights)
    names = tuple(head.term_names)
    subject.require(set(terms) == set(names), f"returns terms {sorted(terms)}, but term_names says {sorted(names)}")
    both = sorted(set(names) & set(subject.tasks))
    subject.require(not both, f"calls a term like a task: {', '.join(both)}")
    for name, term in terms.items():
        subject.require(isinstance(term, Term), f"returns a term '{name}' that is no Term")
        for part, value in (("value", term.value), ("weight", term.weight)):
            shape = tuple(value.shape)
            subject.require(shape == tuple(valid.shape), f"returns a term '{name}' whose {part} has shape {shape}, not [B]")
            subject.require(bool(torch.isfinite(value).all()), f"returns a term '{name}' whose {part} is not finite")
        subject.require(bool((term.weight >= 0).all()), f"returns a term '{name}' with a negative weight")
        on_padding = bool((term.weight[valid == 0] != 0).any())
        subject.require(not on_padding, f"weighs padding rows in the term '{name}'; multiply its weight by the tasks' weights")


def _check_phases(subject: Subject) -> None:
    phases = subject.build().phases(3)
    subject.require(len(phases) > 0, "has no phase of training")
    subject.require(len({p.name for p in phases}) == len(phases), "has two phases of the same name")
    for phase in phases:
        subject.require(phase.epochs >= 1, f"has a phase '{phase.name}' of {phase.epochs} epochs")
        unknown = sorted(set(phase.tasks or ()) - {*subject.tasks, *subject.head_class.term_names})
        subject.require(not unknown, f"trains unknown tasks in phase '{phase.name}': {', '.join(unknown)}")


def _check_reach(subject: Subject) -> None:
    """Which of its inputs each task's loss reaches: what ``isolates_tasks`` and ``reads_features`` say of it."""
    for seed in range(3):
        head, inputs = subject.build(seed), subject.inputs(16, seed=seed)
        head.set_progress(0.5, 50)
        out = head(inputs)
        views, features = view_leaves(inputs), feature_leaves(inputs)
        for k, task in enumerate(subject.tasks):
            gradients = _gradients(_weighted(out.logits[task]), [*views, *features])
            reached = [bool((g != 0).any()) for g in gradients]
            subject.require(any(reached), f"gives '{task}' logits that depend on no input")
            if not head.reads_features:
                remedy = "set `reads_features = True`"
                subject.require(
                    not any(reached[len(views) :]), f"reads features for '{task}' past the representation; {remedy}"
                )
            if head.isolates_tasks:
                foreign = [name for j, name in enumerate(subject.tasks) if j != k and reached[1 + j]]
                foreign += ["all tasks (`shared`, though `per_task` is given)"] * reached[0]
                subject.require(
                    not foreign, f"says isolates_tasks, but the loss of '{task}' reaches the view of {', '.join(foreign)}"
                )


def _check_tables(subject: Subject) -> None:
    """The boundary is a cut; tables of one task are trained by its loss alone where nothing is shared."""
    path = f"{subject.head_class.__module__}:{subject.head_class.__qualname__}"
    try:
        named = resolve("head", path)
    except ValueError as error:
        raise AssertionError(f"{subject.head_class.__name__} cannot be named in a config: {error}") from error
    subject.require(named is subject.head_class, f"cannot be named in a config: '{path}' is another class")
    if subject.head_class.tables == "own":
        _check_own_tables(subject)
        return
    subject.require(bool(_moved_tables(subject, None)), "sends no gradient to any shared table")
    for place in ("embeddings",) if subject.head_class.reads_features else ("embeddings", "representation"):
        moved = _moved_tables(subject, place)
        subject.require(
            not moved, f"lets gradients of the tables {', '.join(moved)} past the boundary (gradient.at: {place})"
        )


def _moved_tables(subject: Subject, blocked_at: str | None) -> list[str]:
    """Return the shared tables that get a gradient."""
    model = subject.model(blocked_at=blocked_at)
    model.objective.head.set_progress(0.5, 50)
    losses, _ = model(subject.batch())
    losses.sum().backward()
    tables = {name.split(".")[-2]: p.grad for name, p in model.embeddings.named_parameters()}
    return [name for name, g in tables.items() if "@" not in name and g is not None and bool((g != 0).any())]


def _check_own_tables(subject: Subject) -> None:
    model = subject.model()
    losses, _ = model(subject.batch())
    tables = {name.split(".")[-2]: p for name, p in model.embeddings.named_parameters()}
    for k, task in enumerate(subject.tasks):
        gradients = _gradients(losses[k], list(tables.values()))
        foreign = [n for n, g in zip(tables, gradients, strict=True) if bool((g != 0).any()) and not n.endswith(f"@{task}")]
        subject.require(not foreign, f"lets the loss of '{task}' train tables of other tasks: {', '.join(foreign)}")


def _logits(head: Head, inputs: Representation, torch_seed: int = 0) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(torch_seed)
        return dict(head(inputs).logits)


def _same_in_both_modes(subject: Subject, one: Head, other: Head) -> bool:
    inputs = subject.inputs(seed=2)
    return all(_equal(_logits(one.train(t), inputs), _logits(other.train(t), inputs)) for t in (False, True))


def _labels_and_weights(subject: Subject, valid: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 2, (len(valid), len(subject.tasks)), generator=torch.Generator().manual_seed(0)).float()
    weights = valid.unsqueeze(1).expand_as(labels)
    return labels * weights, weights


def _weighted(z: Tensor) -> Tensor:
    """Return a sum in which no two rows count alike, so that nothing cancels."""
    return (z * torch.linspace(0.5, 1.5, z.numel()).view_as(z)).sum()


def _gradients(loss: Any, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def _close(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return _all_close(list(a.values()), [b[name] for name in a])


def _all_close(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=_TOLERANCE, atol=_TOLERANCE / 10) for x, y in zip(a, b, strict=True))
