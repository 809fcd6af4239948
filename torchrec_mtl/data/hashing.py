"""Stable 64-bit hashes of Arrow columns: the same on every machine, in every process, at training and at serving."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrec_mtl.data.rows import Ints

UInts = npt.NDArray[np.uint64]


def hash_integers(values: Ints) -> UInts:
    """Mix integers by splitmix64 (Steele et al. 2014).

    Args:
        values: [N] integers.

    Returns:
        [N] uint64.

    Example:
        >>> hex(hash_integers(np.array([0]))[0])
        '0xe220a8397b1dcdaf'
    """
    mixed = values.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_strings(array: pa.Array) -> tuple[UInts, Ints]:
    """Hash the distinct strings of a column by BLAKE2b over their UTF-8 bytes.

    Args:
        array: [N] strings, bytes, or a dictionary of them.

    Returns:
        [D] hashes of the D distinct values (at least one), and [N] the place of each row's value among them (0 where
        it is null).
    """
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    if encoded.dictionary.null_count:  # a null among the distinct values
        encoded = encoded.dictionary_decode().dictionary_encode()
    values = encoded.dictionary.cast(pa.large_binary()).to_pylist()
    hashes = [_hash_bytes(value) for value in values]
    places: Ints = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return np.array(hashes or [0], dtype=np.uint64), places


@functools.lru_cache(maxsize=1 << 18)  # row groups repeat the same strings
def _hash_bytes(value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")
