"""Where keys stand in an array, looked up many at once."""

from __future__ import annotations

import numpy as np

from torchrec_mtl.data.rows import Ints


class Lookup:
    """Keys in order, to find where each of them was.

    Args:
        keys: [N].

    Example:
        >>> Lookup(np.array([30, 10, 20])).find(np.array([10, 15, 30]))
        array([ 1, -1,  0])
    """

    def __init__(self, keys: Ints) -> None:
        """See the class."""
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def repeated(self) -> Ints:
        """Return keys that were there before."""
        again: Ints = self._keys[1:][self._keys[1:] == self._keys[:-1]]
        return again

    def find(self, keys: Ints) -> Ints:
        """Return the places of keys [n], the first of each, and -1 where there is none."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        near = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        places: Ints = np.where(self._keys[near] == keys, self._order[near], -1)
        return places
