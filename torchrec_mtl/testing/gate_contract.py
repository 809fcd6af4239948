"""The promises of the gates that a head lets be watched, seen in a forward pass of evaluation."""

from __future__ import annotations

import torch
from torch import nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head
from torchrec_mtl.heads.watched import WatchedGate, weights_of
from torchrec_mtl.testing.subject import Subject


def check_gates(subject: Subject) -> None:
    """What a watched gate says of itself is true: it is asked once a batch, and weighs what it names."""
    head = subject.build().eval()
    for per_task in (True, False):
        inputs = subject.inputs(per_task=per_task)
        for gate in head.watched_gates():
            subject.require(isinstance(gate, WatchedGate), f"watches {type(gate).__name__} instead of a WatchedGate")
            outputs = _outputs(head, gate.module, inputs)
            subject.require(
                len(outputs) == 1,
                f"watches the gate '{gate.title}', whose module is called {len(outputs)} times a batch instead of once",
            )
            every = torch.ones(inputs.shared.shape[0], dtype=torch.bool)
            try:
                weights_of(gate, outputs[0], subject.tasks, every)
            except ValueError as error:
                name = subject.head_class.__name__
                raise AssertionError(f"{name} watches a gate, '{gate.title}', that {error}") from error


def _outputs(head: Head, module: nn.Module, inputs: Representation) -> list[object]:
    """Return what a module returns in a forward pass of the head, call by call."""
    found: list[object] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        with torch.no_grad():
            head(inputs)
    finally:
        hook.remove()
    return found
