"""Make training files of Ali-CCP, a log of Taobao's recommendations: which impressions were clicked, and then bought.

SOURCE holds the release's four files, as .csv or .csv.gz. A row of a skeleton names a row of the common features (a
user's fields, shared by many impressions). Both are far larger than memory, so they are read in chunks, twice:

1. count the values of the rows of train: those with at least `--min-count` rows get ids 1 to V, all others are 0;
2. write train, validation (a tenth of the release's train rows, by a hash of their sample id), and test.

Files appear in OUT only once all of them are complete; `sizes.json` is the last. Shapes: N lines, E entries of a field.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mtl.data.hashing import hash_integers

if TYPE_CHECKING:
    from examples.ali_ccp import common_features, encoding, output, release
else:  # in a script, its own folder is on the path
    import common_features
    import encoding
    import output
    import release

ROWS_PER_GROUP = 16_384
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        out: Folder to write to.
        min_count: Rows of train that a value needs for an id of its own.
        max_length: Longest list.
        seed: Of the choice of the validation rows.
        rows: Read the first rows of each skeleton only; None for all.
    """

    out: Path
    min_count: int
    max_length: int
    seed: int
    rows: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the splits of SOURCE.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where the data is missing or malformed.
    """
    parser = argparse.ArgumentParser(description="Make training files of Ali-CCP.")
    parser.add_argument(
        "--source", type=Path, required=True, help="folder of the release's four files, .csv or .csv.gz"
    )
    parser.add_argument("--out", type=Path, default=Path("data/ali_ccp"), help="folder to write to [%(default)s]")
    parser.add_argument("--rows", type=int, help="for a trial: the first rows of each skeleton only")
    parser.add_argument("--min-count", type=int, default=10, help="rarer values share id 0 [%(default)s]")
    parser.add_argument(
        "--max-length", type=int, default=20, help="longest list; the largest values stay [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of validation rows [%(default)s]")
    args = parser.parse_args(argv)
    try:
        for name in ("rows", "min_count", "max_length"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(args, name)}; give a whole number from 1")
        options = Options(
            out=args.out, min_count=args.min_count, max_length=args.max_length, seed=args.seed, rows=args.rows
        )
        prepare(args.source, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(source: Path, options: Options) -> None:
    """Writes train, validation, and test, a YAML with the table sizes found, and sizes.json.

    Args:
        source: Folder of the release.
        options: See `Options`.

    Raises:
        ValueError: If a file is missing, or a line is malformed.
    """
    files = {split: release.find_files(source, split) for split in ("train", "test")}
    staging = options.out / ".partial"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    staging.mkdir(parents=True)
    try:
        skeleton, path = files["train"]
        vocabulary, keys = count_skeleton(skeleton, options)
        common = common_features.read_common(path, needed=keys, max_length=options.max_length)
        vocabulary |= common_features.count_common(common, keys=keys, min_count=options.min_count)
        users = common_features.encode_common(common, vocabulary)
        del common  # larger than users
        outputs = {split: staging / f"{split}.parquet" for split in ("train", "validation")}
        report = write_rows(skeleton, outputs=outputs, users=users, vocabulary=vocabulary, options=options)

        skeleton, path = files["test"]
        keys = read_keys(skeleton, options)
        common = common_features.read_common(path, needed=keys, max_length=options.max_length)
        users = common_features.encode_common(common, vocabulary)
        del common
        outputs = {"test": staging / "test.parquet"}
        report |= write_rows(skeleton, outputs=outputs, users=users, vocabulary=vocabulary, options=options)
        rows = {f"f{name}": len(values) + 1 for name, values in vocabulary.items()}
        about = {"min_count": options.min_count, "seed": options.seed}
        output.publish(staging, out=options.out, rows=rows, report=report, about=about)
    finally:
        shutil.rmtree(staging)


def count_skeleton(path: Path, options: Options) -> tuple[encoding.Vocabulary, dict[str, int]]:
    """Reads train's skeleton for the first time.

    Args:
        path: The file.
        options: See `Options`.

    Returns:
        The values with an id, by field, and the number of train's rows of each key of the common features.
    """
    counts = {name: encoding.Counts() for name in release.SKELETON_FIELDS}
    keys: dict[str, int] = {}
    for chunk in release.read_chunks(path, release.SKELETON_COLUMNS, rows=options.rows):
        table = release.read_columns(chunk)
        is_train = assign(table, splits=("train", "validation"), seed=options.seed) == 0
        fields = release.split_features(
            chunk, table["feature_list"], names=release.SKELETON_FIELDS, max_length=options.max_length
        )
        for name, entries in fields.items():
            counts[name].add(entries.ids[np.repeat(is_train, entries.lengths)])
        common_features.add_keys(keys, table, counted=is_train)
    return {name: count.frequent(options.min_count) for name, count in counts.items()}, keys


def read_keys(path: Path, options: Options) -> dict[str, int]:
    """Reads the keys of the common features that a skeleton uses, and the number of rows of each."""
    keys: dict[str, int] = {}
    for chunk in release.read_chunks(path, release.SKELETON_COLUMNS, rows=options.rows):
        table = release.read_columns(chunk)
        common_features.add_keys(keys, table, counted=np.ones(len(table), np.bool_))
    return keys


def write_rows(
    path: Path,
    *,
    outputs: Mapping[str, Path],
    users: common_features.Users,
    vocabulary: encoding.Vocabulary,
    options: Options,
) -> dict[str, output.Report]:
    """Reads a skeleton, train's for the second time, and writes its rows with ids in place of values.

    Args:
        path: The skeleton.
        outputs: The file of each split.
        users: The common features of its rows.
        vocabulary: The values with an id, by field.
        options: See `Options`.

    Returns:
        What was written, by split.
    """
    report = {split: output.Report() for split in outputs}
    with contextlib.ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        for chunk in release.read_chunks(path, release.SKELETON_COLUMNS, rows=options.rows):
            table = release.read_columns(chunk)
            rows = encode_rows(chunk, table, users=users, vocabulary=vocabulary, max_length=options.max_length)
            assigned = assign(table, splits=tuple(outputs), seed=options.seed)
            for number, (split, target) in enumerate(outputs.items()):
                part = rows.filter(pa.array(assigned == number))
                if split not in writers:
                    writers[split] = stack.enter_context(pq.ParquetWriter(target, part.schema, compression="zstd"))
                writers[split].write_table(part, row_group_size=ROWS_PER_GROUP)
                report[split].rows += len(part)
                report[split].clicks += int(np.sum(part["click"].to_numpy()))
                report[split].buys += int(np.sum(part["buy"].to_numpy()))
                report[split].dropped += int(np.sum(assigned < 0))
    return report


def assign(table: pa.Table, *, splits: Sequence[str], seed: int) -> release.Ints:
    """Says which split a row belongs to.

    Args:
        table: Rows of a skeleton.
        splits: One split, or two, of which the second gets a tenth.
        seed: Of the choice.

    Returns:
        [N] the number of each row's split; -1 for a buy without a click, which is dropped as in the literature.
    """
    numbers = np.zeros(len(table), np.int64)
    if len(splits) > 1:
        seeds = hash_integers(np.array([seed], np.int64)).view(np.int64)
        hashes = hash_integers(table["sample_id"].to_numpy() ^ seeds)
        numbers[hashes < np.uint64(int(VALIDATION_SHARE * 2**64))] = 1
    numbers[~table["click"].to_numpy() & table["buy"].to_numpy()] = -1
    return numbers


def encode_rows(
    chunk: release.Chunk,
    table: pa.Table,
    *,
    users: common_features.Users,
    vocabulary: encoding.Vocabulary,
    max_length: int,
) -> pa.Table:
    """Puts key, labels, the fields of the skeleton, and those of the common features side by side.

    Args:
        chunk: Lines of a skeleton.
        table: Their columns.
        users: The common features.
        vocabulary: The values with an id, by field.
        max_length: Longest list.

    Returns:
        A row a line.
    """
    columns: dict[str, pa.Array] = {
        "sample_id": table["sample_id"],
        "click": table["click"].cast(pa.int8()),
        "buy": table["buy"].cast(pa.int8()),
    }
    fields = release.split_features(chunk, table["feature_list"], names=release.SKELETON_FIELDS, max_length=max_length)
    for name, entries in fields.items():
        ids = encoding.look_up(entries.ids, vocabulary[name])
        columns |= encoding.to_columns(name, release.Entries(entries.lengths, ids, entries.totals))
    keys = table["common_feature_index"].combine_chunks().dictionary_encode()
    positions = np.array([users.positions[key] for key in keys.dictionary.to_pylist()], np.int64)
    found = users.table.take(pa.array(positions[keys.indices.to_numpy()]))
    return pa.table(columns | {name: found[name] for name in found.column_names})


if __name__ == "__main__":
    sys.exit(main())
