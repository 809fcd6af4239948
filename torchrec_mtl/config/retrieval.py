"""Retrieval from a whole corpus: what is searched, by whom, and how far down the list is looked at."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from torchrec_mtl.config.base import Config, Name
from torchrec_mtl.config.data import Files


class RetrievalConfig(Config):
    """Evaluations rank all items for every query, besides the metrics of the rows themselves.

    A query is all rows with one value in ``query``; it is asked with the features of its first row, and should find the
    items of its rows with label 1.
    """

    items: Files
    """The corpus: one row an item, with the columns of the item features."""
    item: Name
    """Column that names an item, in the corpus and in the rows."""
    query: Name
    """Column that names a query, such as the user."""
    seen: Name | None = None
    """Column of lists of items that are not to be found again."""
    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (50, 100, 200)
    """Lengths of the lists that are judged."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of each task."""
        return tuple(f"{name}@{k}" for k in self.ks for name in ("recall", "ndcg", "hit", "coverage"))
