"""Items drawn beside the rows of a training batch: further columns of a softmax over items, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torchrec_mtl.config.retrieval import NegativesConfig
from torchrec_mtl.data.corpus import Corpus, laid_out_as
from torchrec_mtl.data.found import Found
from torchrec_mtl.data.frequencies import Frequencies
from torchrec_mtl.data.ids import NULL_KEY
from torchrec_mtl.data.rows import Bools, Ints, Rows

# Shapes: S streams of all ranks, s of this one, w rows of a stream in a batch, E items drawn for a stream, N items.


class Negatives:
    """Draws items for each batch: alike at any world size, and alike again after a resume.

    Each stream of the batch gets as many. An item that is drawn has its item features, no others, no label, no weight.

    Attributes:
        per_stream: E.
    """

    def __init__(
        self,
        config: NegativesConfig,
        corpus: Corpus,
        frequencies: Frequencies,
        *,
        seed: int,
        streams: int,
        found: Found | None = None,
    ) -> None:
        """Prepare to draw.

        Args:
            config: how many a batch.
            corpus: N items.
            frequencies: of the training rows.
            seed: of the run.
            streams: S.
            found: what was found for each query, for hard negatives.

        Raises:
            ValueError: no item of the corpus is in the training data, and popular ones are wanted.
        """
        self.per_stream = config.total // streams
        self._counts = tuple(n // streams for n in (config.uniform, config.popular, config.hard))
        self._corpus, self._seed, self._streams, self._found = corpus, seed, streams, found
        self._popularity = np.cumsum(frequencies.share(corpus.keys))
        if config.popular and not self._popularity[-1]:
            raise ValueError(
                "retrieval.negatives.popular: no item of retrieval.items is in data.train; both must name items alike "
                "in the column retrieval.item"
            )
        self._rows: Rows | None = None

    def add(self, rows: Rows, real: Bools, *, step: int, streams: Sequence[int]) -> tuple[Rows, Bools]:
        """Return the rows and the items drawn behind them, and which of the drawn are there, [s * E].

        Args:
            rows: n rows of data.
            real: [s * w] which places of the batch they have, stream by stream.
            step: number of the global batch.
            streams: s, of this rank.
        """
        queries = np.full(len(real), NULL_KEY)
        if "query" in rows.ids:
            queries[real] = rows.ids["query"]
        places = self.draw(step, streams, queries.reshape(len(streams), -1)).ravel()
        if self._rows is None:
            self._rows = laid_out_as(self._corpus, rows)
        return Rows.concat([rows, self._rows.take(places[places >= 0])]), places >= 0

    def draw(self, step: int, streams: Sequence[int], queries: Ints) -> Ints:
        """Return places in the corpus [s, E], -1 for none.

        Args:
            step: number of the global batch.
            streams: s, of this rank.
            queries: [s, w] keys of the rows' queries; ``NULL_KEY`` for padding.
        """
        # All ranks draw for all streams, and keep their own: what a stream gets depends on no world size.
        generator, mine = np.random.default_rng([self._seed, step]), list(streams)
        uniform, popular, hard = self._counts
        parts = [generator.integers(len(self._corpus.keys), size=(self._streams, uniform))[mine]]
        parts.append(self._popular(generator.random((self._streams, popular))[mine]))
        if self._found is not None:
            rows = generator.integers(queries.shape[1], size=(self._streams, hard))[mine]
            luck = generator.random((self._streams, hard))[mine]
            parts.append(self._found.pick(np.take_along_axis(queries, rows, axis=1), luck))
        return np.concatenate(parts, axis=1)

    def _popular(self, luck: npt.NDArray[np.float64]) -> Ints:
        """Return items by their share of the training rows, of numbers in 0 .. 1."""
        places = np.searchsorted(self._popularity, luck * self._popularity[-1], side="right")
        found: Ints = places.clip(max=len(self._popularity) - 1)
        return found
