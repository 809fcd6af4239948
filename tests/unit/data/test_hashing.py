import numpy as np
import pyarrow as pa

from torchrec_mtl.data.hashing import hash_integers, hash_strings
from torchrec_mtl.data.ids import NULL_KEY, encode_keys, plain_integers

# Frozen: another value for any of these would move every hashed id of trained tables.
INTEGERS = ["0xe220a8397b1dcdaf", "0x910a2dec89025cc1", "0xe4d971771b652c20", "0x2a67d7552e039ea7"]
STRINGS = {"": 13020603013274838756, "user42": 10733283042334683800, "müller": 853034989383714686}


def by_row(array):
    hashes, places = hash_strings(array)
    return hashes[places].tolist()


def test_integer_hashes_never_change():
    values = np.array([0, 1, -1, 2**63 - 1])
    assert [hex(h) for h in hash_integers(values)] == INTEGERS


def test_string_hashes_never_change():
    assert by_row(pa.array(list(STRINGS))) == list(STRINGS.values())


def test_integers_hash_alike_in_every_width():
    for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()):
        assert hash_integers(plain_integers(pa.array([7], kind)))[0] == hash_integers(np.array([7]))[0]


def test_strings_hash_alike_in_every_encoding():
    plain = pa.array(["a", None, "b", "a", "müller"])
    expected = by_row(plain)
    for array in (
        plain.cast(pa.large_string()),
        plain.cast(pa.binary()),
        plain.dictionary_encode(),
        pa.concat_arrays([pa.array(["x"]), plain]).slice(1),
        pa.concat_arrays([pa.array(["x"]), plain]).dictionary_encode().slice(1),
        pa.DictionaryArray.from_arrays([0, 1, 2, 0, 3], ["a", None, "b", "müller"]),
    ):
        found = by_row(array)
        assert [found[i] for i in (0, 2, 3, 4)] == [expected[i] for i in (0, 2, 3, 4)]


def test_hashes_spread_evenly():
    strings = by_row(pa.array([f"user{i}" for i in range(20_000)]))
    for hashes in (hash_integers(np.arange(20_000)), np.array(strings, np.uint64)):
        counts = np.bincount((hashes % np.uint64(10)).astype(int), minlength=10)
        assert abs(counts / len(hashes) - 0.1).max() < 0.01


def test_keys_keep_integers_and_hash_strings():
    assert encode_keys(pa.array([5, None, -3], pa.int32())).tolist() == [5, NULL_KEY, -3]
    strings = encode_keys(pa.array(["a", None, "b", "a"]))
    assert strings[0] == strings[3] != strings[2]
    assert strings[1] == NULL_KEY
