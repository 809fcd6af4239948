"""Encoded rows in NumPy: sliced, gathered, and joined without a Python loop over rows.

Shapes: N rows, F1 features of one id a row, M ids of a list feature, D0 dense features, K tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Buckets = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Jagged:
    """A list of ids a row.

    Attributes:
        values: [M] ids.
        offsets: [N + 1]; row i owns ``values[offsets[i]:offsets[i + 1]]``. The first need not be 0: a slice is a view.
        gaps: [M] how long ago each was, in buckets; None where the data do not say.
    """

    values: Ints
    offsets: Ints
    gaps: Buckets | None = None

    @classmethod
    def from_lengths(cls, values: Ints, lengths: Ints, gaps: Buckets | None = None) -> Jagged:
        """Make a list feature from its values [M] and the rows' lengths [N]."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]), gaps)

    @property
    def lengths(self) -> Ints:
        """[N] ids of each row."""
        return np.diff(self.offsets)

    @property
    def flat(self) -> Ints:
        """[M] ids of these rows, without those a slice left out."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    @property
    def flat_gaps(self) -> Buckets | None:
        """[M] gaps of the ids in ``flat``."""
        return None if self.gaps is None else self.gaps[self.offsets[0] : self.offsets[-1]]

    def slice(self, start: int, stop: int) -> Jagged:
        """Rows start .. stop - 1, as a view."""
        return Jagged(self.values, self.offsets[start : stop + 1], self.gaps)

    def take(self, indices: Ints) -> Jagged:
        """The rows at ``indices`` [n], copied."""
        starts = self.offsets[indices]
        return Jagged.from_ranges(self.values, starts, self.offsets[indices + 1] - starts, self.gaps)

    @classmethod
    def from_ranges(cls, values: Ints, starts: Ints, lengths: Ints, gaps: Buckets | None = None) -> Jagged:
        """Gather ``values[starts[i]:starts[i] + lengths[i]]`` of every row i, and their gaps."""
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        source = element_indices(starts, offsets)
        return cls(values[source], offsets, None if gaps is None else gaps[source])

    @staticmethod
    def concat(parts: Sequence[Jagged]) -> Jagged:
        """All rows of ``parts``, one after the other."""
        lengths = np.concatenate([part.lengths for part in parts])
        gaps = [part.flat_gaps for part in parts if part.flat_gaps is not None]
        return Jagged.from_lengths(
            np.concatenate([part.flat for part in parts]), lengths, np.concatenate(gaps) if gaps else None
        )


def element_indices(starts: Ints, offsets: Ints) -> Ints:
    """Return [M] where the elements lie of rows that begin at ``starts`` [N] and shall begin at ``offsets`` [N + 1]."""
    indices = np.arange(offsets[-1])
    indices += np.repeat(starts - offsets[:-1], np.diff(offsets))
    return indices


@dataclasses.dataclass(frozen=True)
class Rows:
    """N encoded rows.

    Attributes:
        dense: [N, D0], normalised.
        labels: [N, K]; 0 where the weight is 0.
        weights: [N, K]; 0 outside the task's space.
        ids: name -> [N]; never an input.
        single_names: features of at most one id a row; the columns of ``single``.
        single: [N, F1] their ids; by row, as rows are gathered three times as fast as columns.
        present: [N, F1] whether the row has an id; None where all have.
        lists: features of a list of ids a row, by name.
    """

    dense: Floats
    labels: Floats
    weights: Floats
    ids: Mapping[str, Ints]
    single_names: tuple[str, ...]
    single: Ints
    present: Bools | None
    lists: Mapping[str, Jagged]

    def __len__(self) -> int:
        return len(self.dense)

    def slice(self, start: int, stop: int) -> Rows:
        """Rows start .. stop - 1, as views."""
        return Rows(
            dense=self.dense[start:stop],
            labels=self.labels[start:stop],
            weights=self.weights[start:stop],
            ids={name: values[start:stop] for name, values in self.ids.items()},
            single_names=self.single_names,
            single=self.single[start:stop],
            present=None if self.present is None else self.present[start:stop],
            lists={name: jagged.slice(start, stop) for name, jagged in self.lists.items()},
        )

    def take(self, indices: Ints) -> Rows:
        """The rows at ``indices`` [n], copied."""
        return Rows(
            dense=np.take(self.dense, indices, axis=0),
            labels=np.take(self.labels, indices, axis=0),
            weights=np.take(self.weights, indices, axis=0),
            ids={name: values[indices] for name, values in self.ids.items()},
            single_names=self.single_names,
            single=np.take(self.single, indices, axis=0),
            present=None if self.present is None else np.take(self.present, indices, axis=0),
            lists={name: jagged.take(indices) for name, jagged in self.lists.items()},
        )

    def with_dense(self, dense: Floats) -> Rows:
        """The same with other dense columns [N, D0]."""
        return dataclasses.replace(self, dense=dense)

    @staticmethod
    def concat(parts: Sequence[Rows]) -> Rows:
        """All rows of ``parts``, one after the other; a single part is returned as it is.

        Raises:
            ValueError: A feature is a list in one part and a single id in another.
        """
        first = parts[0]
        if len(parts) == 1:
            return first
        for part in parts:
            if part.single_names != first.single_names:
                mixed = sorted(set(part.single_names) ^ set(first.single_names))
                raise ValueError(f"{', '.join(mixed)}: a list in one file, one id a row in another. Write them alike.")
        return Rows(
            dense=np.concatenate([part.dense for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            weights=np.concatenate([part.weights for part in parts]),
            ids={name: np.concatenate([part.ids[name] for part in parts]) for name in first.ids},
            single_names=first.single_names,
            single=np.concatenate([part.single for part in parts]),
            present=_concat_present(parts),
            lists={name: Jagged.concat([part.lists[name] for part in parts]) for name in first.lists},
        )


def _concat_present(parts: Sequence[Rows]) -> Bools | None:
    if all(part.present is None for part in parts):
        return None
    masks = [np.ones(part.single.shape, bool) if part.present is None else part.present for part in parts]
    return np.concatenate(masks)
