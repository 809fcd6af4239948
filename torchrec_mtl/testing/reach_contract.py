"""How far the tasks' losses reach: within a head, and in a whole model down to the tables."""

from __future__ import annotations

from torchrec_mtl.registry import resolve
from torchrec_mtl.testing.subject import Subject, feature_leaves, gradients_of, view_leaves, weighted


def check_reach(subject: Subject) -> None:
    """Which of its inputs each task's loss reaches: what ``isolates_tasks`` and ``reads_features`` say of it."""
    for seed in range(2):
        head, inputs = subject.build(seed), subject.inputs(16, seed=seed)
        head.set_progress(0.5, 50)
        out = head(inputs)
        views, features = view_leaves(inputs), feature_leaves(inputs)
        for k, task in enumerate(subject.tasks):
            gradients = gradients_of(weighted(out.logits[task]), [*views, *features])
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
                    not foreign,
                    f"says isolates_tasks, but the loss of '{task}' reaches the view of {', '.join(foreign)}",
                )


def check_tables(subject: Subject) -> None:
    """The boundary is a cut; tables of one task are trained by its loss alone where nothing is shared."""
    path = f"{subject.head_class.__module__}:{subject.head_class.__qualname__}"
    try:
        named = resolve("head", path)
    except ValueError as error:
        raise AssertionError(f"{subject.head_class.__name__} cannot be named in a config: {error}") from error
    subject.require(named is subject.head_class, f"cannot be named in a config: '{path}' is another class")
    if subject.head_class.tables != "shared":
        _check_own_tables(subject)
    if subject.head_class.tables == "own":
        return
    subject.require(bool(_moved_tables(subject, None)), "sends no gradient to any shared table")
    if len(subject.tasks) < 2 or subject.config.alternates:  # no gradients to combine, no boundary
        return
    for place in ("embeddings",) if subject.head_class.reads_features else ("embeddings", "representation"):
        moved = _moved_tables(subject, place)
        subject.require(
            not moved, f"lets gradients of the tables {', '.join(moved)} past the boundary (gradient.at: {place})"
        )


def _moved_tables(subject: Subject, blocked_at: str | None) -> list[str]:
    """Return the shared tables that get a gradient."""
    model = subject.model(blocked_at=blocked_at)
    model.objective.head.set_progress(0.5, 50)
    model.objective.activate(model.objective.rule.tasks)  # constraints pass every boundary, by design
    losses, _ = model(subject.batch())
    losses.sum().backward()
    tables = {name.split(".")[-2]: p.grad for name, p in model.embeddings.named_parameters()}
    return [name for name, g in tables.items() if "@" not in name and g is not None and bool((g != 0).any())]


def _check_own_tables(subject: Subject) -> None:
    model = subject.model()
    losses, _ = model(subject.batch())
    tables = {name.split(".")[-2]: p for name, p in model.embeddings.named_parameters()}
    for k, task in enumerate(subject.tasks):
        gradients = gradients_of(losses[k], list(tables.values()))
        moved = [name for name, g in zip(tables, gradients, strict=True) if bool((g != 0).any()) and "@" in name]
        foreign = [name for name in moved if not name.endswith(f"@{task}")]
        subject.require(bool(moved), f"sends the loss of '{task}' to no table of its own")
        subject.require(not foreign, f"lets the loss of '{task}' train tables of other tasks: {', '.join(foreign)}")
