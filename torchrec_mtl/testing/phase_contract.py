"""The promises of a head about its phases, gone through as the trainer does, without training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrec_mtl.findings import MatrixFinding, TableFinding
from torchrec_mtl.heads.base import Head, Phase
from torchrec_mtl.testing.subject import Subject

_METRICS = ("auc", "loss", "rmse")


def check_phases(subject: Subject) -> None:
    """Phases are named, last, and train what there is; going through them keeps to the contract."""
    head = subject.build()
    phases = head.phases(3)
    subject.require(len(phases) > 0, "has no phase of training")
    subject.require(len({p.name for p in phases}) == len(phases), "has two phases of the same name")
    for phase in phases:
        subject.require(phase.epochs >= 1, f"has a phase '{phase.name}' of {phase.epochs} epochs")
        subject.require(phase.steps is None or phase.steps >= 1, f"has a phase '{phase.name}' of {phase.steps} steps")
        subject.require(phase.tasks is None or bool(phase.tasks), f"trains nothing in phase '{phase.name}'")
        terms = {*head.term_names, *head.constraint_names}
        only_tasks = not (phase.alternate and terms)
        subject.require(only_tasks, f"has terms, which phase '{phase.name}' would never train: a step trains one task")
        unknown = sorted(set(phase.tasks or ()) - {*subject.tasks, *head.term_names, *head.constraint_names})
        subject.require(not unknown, f"trains unknown tasks in phase '{phase.name}': {', '.join(unknown)}")
    subject.require(phases[0].rewind == "none", "rewinds in its first phase, where there is nothing to go back from")
    subject.require(not phases[-1].trial, "ends with a trial, which leaves a run without a best checkpoint")
    buffers, state = dict(head.named_buffers()), head.state_dict()
    missing = [name for name in head.state_kept if name not in buffers or name not in state]
    subject.require(not missing, f"says that it keeps {', '.join(missing)}, but has no such buffers in its state dict")
    for number, phase in enumerate(phases):
        _check_active(subject, head, phase)
        _check_end(subject, head, phase, number)
        if number + 1 < len(phases):
            _check_resumed(subject, head, phases[number + 1])
    head.begin_phase(phases[-1])
    head.activate(None)
    _check_findings(subject, head)


def _check_active(subject: Subject, head: Head, phase: Phase) -> None:
    """A phase's tasks have the logits that they have where all are computed."""
    inputs = subject.inputs()
    head.eval().activate(None)
    with torch.no_grad():
        whole = head(inputs).logits
        head.begin_phase(phase)
        tasks = [task for task in subject.tasks if phase.tasks is None or task in phase.tasks]
        for active in (tasks, *([task] for task in tasks if phase.alternate)):
            head.activate(active)
            part = head(inputs).logits
            changed = [t for t in active if not torch.allclose(part[t], whole[t], rtol=1e-4, atol=1e-5)]
            subject.require(not changed, f"has other logits for {', '.join(changed)} once those alone are active")
            _check_update_masks(subject, head)
    head.train()


def _check_update_masks(subject: Subject, head: Head) -> None:
    known = {id(parameter) for parameter in head.parameters()}
    for parameter, mask in head.update_masks():
        subject.require(id(parameter) in known, "masks the update of something that is no parameter of its own")
        wide = (1,) * (parameter.dim() - mask.dim()) + tuple(mask.shape)
        fits = len(wide) == parameter.dim() and all(m in {1, p} for m, p in zip(wide, parameter.shape))
        what = f"masks an update of shape {tuple(parameter.shape)} by {mask.dtype} of shape {tuple(mask.shape)}"
        subject.require(mask.dtype == torch.bool and fits, what)


def _check_end(subject: Subject, head: Head, phase: Phase, number: int) -> None:
    """The end of a phase changes what is kept alone, in place, and a state dict carries it."""
    before, places = _copy(head), {name: head.get_buffer(name).data_ptr() for name in head.state_kept}
    metrics = {task: dict.fromkeys(_METRICS, 0.5 + number / 100) for task in subject.tasks}
    end = head.end_phase(phase, metrics)
    after = dict(head.state_dict())
    changed = [
        key for key, value in before.items() if not torch.equal(value, after[key]) and key not in head.state_kept
    ]
    subject.require(not changed, f"changes {', '.join(changed)} at the end of a phase, which state_kept does not name")
    moved = [name for name, place in places.items() if head.get_buffer(name).data_ptr() != place]
    subject.require(not moved, f"puts another tensor in place of {', '.join(moved)}; write into the one that is there")
    if end is not None:
        numbers = all(isinstance(value, (int, float)) for value in end.values.values())
        subject.require(numbers and isinstance(end.text, str), "ends a phase with more than a text and numbers")


def _check_resumed(subject: Subject, head: Head, phase: Phase) -> None:
    """A head that is loaded between two phases goes on as the one that was never stopped."""
    loaded, inputs = subject.build(seed=1), subject.inputs()
    loaded.load_state_dict(head.state_dict())
    logits = []
    for each in (head.eval(), loaded.eval()):
        for _ in range(2):  # once an epoch
            each.begin_phase(phase)
        each.activate(phase.tasks)
        with torch.no_grad():
            logits.append(each(inputs).logits)
    same = all(torch.equal(z, logits[1][task]) for task, z in logits[0].items())
    told = [repr(list(each.findings())) for each in (head, loaded)]
    subject.require(same and told[0] == told[1], "goes on otherwise once its state dict is loaded between two phases")
    head.train()


def _check_findings(subject: Subject, head: Head) -> None:
    for finding in head.findings():
        kinds = isinstance(finding, (TableFinding, MatrixFinding))
        subject.require(kinds, f"has a finding that is a {type(finding).__name__}, no TableFinding or MatrixFinding")
        rows = finding.rows if isinstance(finding, TableFinding) else finding.values
        even = all(len(row) == len(finding.columns) for row in rows)
        subject.require(even, f"has a finding '{finding.title}' whose rows are not as wide as its columns")
        cells = [cell for row in rows for cell in row]
        plain = all(isinstance(c, str) or (type(c) in {int, float} and not math.isinf(c)) for c in cells)
        subject.require(plain, f"has a finding '{finding.title}' with cells that are no text and no finite number")


def _copy(head: Head) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}
