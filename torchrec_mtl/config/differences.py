"""What two configs differ in, by path: for the error of a folder that holds something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchrec_mtl.config.explain import shown


def differences(
    old: object, new: object, path: str = "", *, may_differ: Callable[[str], bool] = lambda _: False
) -> list[str]:
    """Return a line a value that is another, or is missing on one side, such as ``train.epochs: was 1, is 2``.

    Args:
        old: plain values, as YAML has them.
        new: the same of now.
        path: of both, in what they are parts of.
        may_differ: whether what lies at a path has no say.
    """
    if may_differ(path):
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        pairs = [(key, old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{path}: was {shown(old)}, is {shown(new)}"]
    paths = [f"{path}.{key}" if path else str(key) for key, _, _ in pairs]
    return [d for p, (_, a, b) in zip(paths, pairs, strict=True) for d in differences(a, b, p, may_differ=may_differ)]
