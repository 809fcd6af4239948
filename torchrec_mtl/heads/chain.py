"""A chain of binary tasks: ``P(t) = P(t - 1) P(t | t - 1)``, in log space from the logits of the conditionals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchrec_mtl.config.tasks import TaskConfig

# Shapes: B batch, T chained tasks.


def chain_logits(conditional: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of ``P(t) = prod_{j <= t} sigmoid(z_j)``, and ``log P(t)``, both [T, B].

    The log-odds are ``log P(t) - log(1 - P(t))``, with ``1 - P(t) = (1 - P(t - 1)) + P(t - 1) (1 - sigmoid(z_t))`` as a
    sum of two positive numbers: nothing cancels, wherever the probabilities lie. This is a recurrence over the tasks;
    ``logcumsumexp``, which has none, is slower on a CPU, and its gradient less exact.

    Args:
        conditional: logits z [T, B], of the first task and of each task given the one before.
    """
    log_p = logsigmoid(conditional).cumsum(0)
    log_not = list(logsigmoid(-conditional))
    for t in range(1, len(log_not)):
        log_not[t] = torch.logaddexp(log_not[t - 1], log_p[t - 1] + log_not[t])
    return log_p - torch.stack(log_not), log_p


def conditional_predictions(names: Sequence[str], conditional: Tensor) -> dict[str, Tensor]:
    """Return ``buy_given_click`` and the like -> probabilities [B], from logits [T, B]."""
    return {f"{task}_given_{before}": p for (before, task), p in zip(pairwise(names), conditional[1:].sigmoid())}


def chain_names(head: str, outputs: Mapping[str, int], binary: Sequence[str] | None) -> tuple[str, ...]:
    """Return the chained tasks in causal order: the binary ones, or all where nothing says which are.

    Raises:
        ValueError: if one of them asks for more than a logit, or there is no such task.
    """
    names = tuple(outputs) if binary is None else tuple(binary)
    if unknown := [name for name in names if name not in outputs]:
        raise ValueError(f"{head} was told that {unknown} are binary, but the tasks are {list(outputs)}; name those")
    if wide := [name for name in names if outputs[name] != 1]:
        raise ValueError(f"{head} chains one logit a binary task, but the losses of {wide} ask for more; use bce")
    return names


def chain_problems(head: str, tasks: Sequence[TaskConfig], *, ordered: bool = True) -> list[str]:
    """Return why the binary tasks make no chain over one space, with the remedies.

    Args:
        head: its name, for messages.
        tasks: of the run.
        ordered: what the head predicts are the chain's products, so that an ``order`` could not act.
    """
    chain = [task for task in tasks if task.kind == "binary"]
    if len(tasks) > 1 and len(chain) < 2:
        found = chain[0].name if chain else "none"
        return [
            f"{head} chains binary tasks, and with fewer than two (found {found}) it is a tower a task; add a binary "
            "task, or use head: {type: shared_bottom, shared: []}"
        ]
    problems = []
    for task in chain[1:]:
        if task.space != chain[0].space:
            problems.append(
                f"{head} learns P({task.name}) over all rows of '{chain[0].name}' (space: {chain[0].space}), but "
                f"'{task.name}' is defined inside space: {task.space}; remove its space, so that the label is 0 "
                "elsewhere"
            )
        if task.order is not None and ordered:
            problems.append(
                f"{head} never predicts '{task.name}' likelier than '{task.order.below}', so that its order cannot "
                "act; remove order"
            )
    weighted = [t.name for t in chain if getattr(t.loss, "pos_weight", 1.0) != 1.0]
    if weighted and len(chain) > 1:
        problems.append(
            f"{head} multiplies probabilities, and pos_weight trains the logits of {', '.join(weighted)} to other "
            "odds; remove pos_weight"
        )
    return problems
