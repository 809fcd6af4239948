"""Retrieval from a whole corpus: what is searched, by whom, and how far down the list is looked at."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from torchrec_mtl.config.base import Config, Name
from torchrec_mtl.config.data import Files


class NegativesConfig(Config):
    """Items drawn beside the rows of each training batch, as further negatives of a softmax over the batch's items.

    They are extra rows with item features alone, and weight 0 in all other losses. Counts are of a GLOBAL batch and
    multiples of ``data.streams``. The corpus is kept in memory.
    """

    uniform: NonNegativeInt = 0
    """Drawn alike from all items of the corpus: rare and new ones are in no batch otherwise."""
    popular: NonNegativeInt = 0
    """Drawn by their share of the training rows."""
    hard: NonNegativeInt = 0
    """Drawn from what was found for the queries of rows of the batch."""
    found: Files | None = None
    """What ``torchrec-mtl search`` wrote for the training rows, with an index of an earlier run. What the query has a
    positive label of in ``data.train`` is left out."""

    @property
    def total(self) -> int:
        """All items drawn for a batch."""
        return self.uniform + self.popular + self.hard

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.total:
            raise ValueError("draws nothing; give uniform, popular, or hard, or remove this section")
        if self.hard and self.found is None:
            raise ValueError("hard negatives are drawn from what a search found; name its output in found")
        if self.found is not None and not self.hard:
            raise ValueError("found: without effect while hard is 0; give hard, or remove it")
        return self


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
    negatives: NegativesConfig | None = None
    """Items drawn in training beside those of the batch's rows."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of each task."""
        return tuple(f"{name}@{k}" for k in self.ks for name in ("recall", "ndcg", "hit", "coverage"))
