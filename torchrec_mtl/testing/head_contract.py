"""The promises of a head, each checked by a function of its own; how far losses reach is in ``reach_contract``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput, Term
from torchrec_mtl.testing.gate_contract import check_gates
from torchrec_mtl.testing.phase_contract import check_phases
from torchrec_mtl.testing.reach_contract import check_reach, check_tables
from torchrec_mtl.testing.subject import Subject, at_step, feature_leaves, gradients_of, take, view_leaves, weighted

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

    It returns logits of the right names and shapes, finite for zero and for large inputs; a row's scores depend on that
    row alone when evaluating, and on no padding when training; random numbers come from ``features.noise``, everything
    else from inputs, parameters, and buffers, which a state dict carries; ``isolates_tasks``, ``reads_features``, and
    ``term_names`` say the truth; what it keeps of one phase for the next is in the buffers that it names, and what it
    has to tell can be shown; the gates that it lets be watched are what they say; it works on plain tensors, without
    features, unless it reads them, and on one tensor that holds the representations of all tasks; in a whole model, all
    gradients of shared tables cross the boundary.

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
        check_phases,
        check_gates,
        check_reach,
        _check_plain_tensors,
        _check_one_tensor,
        check_tables,
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
    head = subject.build()
    head.set_progress(0.5, 50)
    for training in (True, False):
        head.train(training)
        for per_task in (True, False):
            for scale, what in ((0.0, "zero"), (1.0, "normal"), (_LARGE, "large")):
                inputs = subject.inputs(scale=scale, per_task=per_task)
                when = f"for {what} inputs in {'training' if training else 'evaluation'}"
                _check_output(subject, head, inputs, when)
    _check_output(subject, head, subject.inputs(1), "for a single row in evaluation")


def _check_output(subject: Subject, head: Head, inputs: Representation, when: str) -> None:
    out = head(inputs)
    subject.require(isinstance(out, HeadOutput), f"returns {type(out).__name__} instead of HeadOutput")
    subject.require(
        set(out.logits) == set(subject.tasks),
        f"returns logits for {sorted(out.logits)}, tasks are {sorted(subject.tasks)}",
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
    gradients = gradients_of(_total(z.sum() for z in out.logits.values()), leaves)
    finite = all(bool(torch.isfinite(g).all()) for g in gradients)
    subject.require(finite, f"has gradients that are not finite {when}")


def _check_evaluation_is_deterministic(subject: Subject) -> None:
    head, inputs = subject.build().eval(), subject.inputs()
    before = _copy(dict(head.named_buffers()))
    first, second = _logits(head, inputs, torch_seed=1), _logits(head, inputs, torch_seed=2)
    subject.require(_equal(first, second), "gives other logits for the same inputs when evaluated twice")
    quiet = _logits(head, at_step(inputs, 1))
    subject.require(_equal(first, quiet), "uses `features.noise` in evaluation, so that a score depends on the step")
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
        loss = _total([*map(weighted, logits.values()), *((t.value * t.weight).sum() for t in terms.values())])
        views = [g[keep] for g in gradients_of(loss, view_leaves(batch))]
        parameters = gradients_of(loss, list(head.parameters()))
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
        "gives other logits after its state dict is loaded into a new head; keep state in parameters or persistent "
        "buffers",
    )


def _check_terms(subject: Subject) -> None:
    head, inputs = subject.build(), subject.inputs()
    valid = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])
    labels, weights = _labels_and_weights(subject, valid)
    terms = head.terms(head(inputs), labels, weights)
    names = (*head.term_names, *head.constraint_names)
    said = f"but term_names and constraint_names say {sorted(names)}"
    subject.require(set(terms) == set(names), f"returns terms {sorted(terms)}, {said}")
    both = sorted(set(names) & set(subject.tasks))
    subject.require(not both, f"calls a term like a task: {', '.join(both)}")
    for name, term in terms.items():
        subject.require(isinstance(term, Term), f"returns a term '{name}' that is no Term")
        for part, value in (("value", term.value), ("weight", term.weight)):
            shape = tuple(value.shape)
            subject.require(
                shape == tuple(valid.shape), f"returns a term '{name}' whose {part} has shape {shape}, not [B]"
            )
            subject.require(bool(torch.isfinite(value).all()), f"returns a term '{name}' whose {part} is not finite")
        subject.require(bool((term.weight >= 0).all()), f"returns a term '{name}' with a negative weight")
        on_padding = bool((term.weight[valid == 0] != 0).any())
        subject.require(
            not on_padding, f"weighs padding rows in the term '{name}'; multiply its weight by the tasks' weights"
        )


def _check_plain_tensors(subject: Subject) -> None:
    if subject.head_class.reads_features:
        return
    head, inputs = subject.build().eval(), subject.inputs()
    try:
        found = _logits(head, Representation(inputs.shared, inputs.per_task))
    except (AttributeError, TypeError) as error:
        raise AssertionError(
            f"{subject.head_class.__name__} fails where `representation.features` is None: {error}"
        ) from error
    subject.require(_equal(found, _logits(head, inputs)), "gives other logits where `representation.features` is None")


def _check_one_tensor(subject: Subject) -> None:
    head, inputs = subject.build().eval(), subject.inputs()
    remedy = "read it through `of_task` and `by_task`"
    try:
        found = _logits(head, dataclasses.replace(inputs, per_task=inputs.by_task()))
    except (AttributeError, TypeError) as error:
        raise AssertionError(
            f"{subject.head_class.__name__} fails where `representation.per_task` is one tensor [K, B, D]; {remedy}: "
            f"{error}"
        ) from error
    same = _close(found, _logits(head, inputs))
    subject.require(same, f"gives other logits where `representation.per_task` is one tensor [K, B, D]; {remedy}")


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


def _total(values: Iterable[Tensor]) -> Tensor:
    return sum(values, start=torch.zeros(()))


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def _close(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return _all_close(list(a.values()), [b[name] for name in a])


def _all_close(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=_TOLERANCE, atol=_TOLERANCE / 10) for x, y in zip(a, b, strict=True))
