"""What the names of a run's tensors say: table or dense part, weight or state of its optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MODEL, OPTIM = "model.", "optim.state."
"""What the names in a checkpoint begin with."""
_DENSE = "objective."
_COLLECTIONS = frozenset({"embedding_bags", "embeddings"})


def table_of(parameter: str) -> str | None:
    """Return the table whose weight a parameter is, or None for one of the dense part.

    Example:
        >>> table_of("embeddings.ebc.embedding_bags.video@click.weight"), table_of("objective.head.last.weight")
        ('video@click', None)
    """
    parts = parameter.split(".")
    is_table = parts[0] == "embeddings" and len(parts) > 2 and parts[-1] == "weight" and parts[-3] in _COLLECTIONS
    return parts[-2] if is_table else None


@dataclass(frozen=True)
class Name:
    """A stored tensor.

    Attributes:
        stored: its name in a checkpoint.
        parameter: the parameter or buffer it is or belongs to, as in the model's state dict.
        table: its table, or None in the dense part.
        state: of an optimizer, such as ``momentum1``; None: the parameter or buffer itself.
    """

    stored: str
    parameter: str
    table: str | None
    state: str | None = None

    @property
    def owner(self) -> str:
        """The table's name, or the path of the module below ``model.objective``."""
        return self.parameter.removeprefix(_DENSE) if self.table is None else self.table


def read_names(stored: Iterable[str]) -> list[Name]:
    """Return what all tensors of a checkpoint are, weights first; what belongs to no parameter is left out."""
    keys = list(stored)
    weights = [Name(k, k[len(MODEL) :], table_of(k[len(MODEL) :])) for k in keys if k.startswith(MODEL)]
    parameters = {name.parameter: name for name in weights}
    found = list(weights)
    for key in (k for k in keys if k.startswith(OPTIM)):
        path = key[len(OPTIM) :]
        # The states of tables are named once more after their table: <parameter>.<table>.<state>.
        ends = [i for i, c in enumerate(path) if c == "." and path[:i] in parameters]
        if not ends:
            continue
        of = parameters[path[: ends[-1]]]
        state = path[ends[-1] + 1 :]
        found.append(Name(key, of.parameter, of.table, state.removeprefix(f"{of.table}.") if of.table else state))
    return found
