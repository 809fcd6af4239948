"""Streams one rank's share of every global batch from Parquet, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.columns import schema_problems
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.negatives import Negatives
from torchrec_mtl.data.order import EpochOrder, Order
from torchrec_mtl.data.rows import Bools, Ints, Rows

_GATHERED_ROWS = 16384


class ParquetReader:
    """Reads batches in the order of ``order.Order``; every rank gets the same number, of the same size.

    In memory are, for each stream of the rank, one window of encoded rows and the row group it stops in; never a file.

    Attributes:
        order: which rows make up which global batch.
        rows_decoded: rows read from Parquet so far.
    """

    def __init__(
        self,
        files: Sequence[DataFile],
        encoder: Encoder,
        *,
        batch_size: int,
        streams: int = 8,
        window: int = 16384,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        negatives: Negatives | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            files: opened files.
            encoder: of the run.
            batch_size: rows of a GLOBAL batch, a multiple of ``streams``.
            streams: slices that make up a batch, a multiple of ``world_size``.
            window: rows of a stream shuffled together.
            shuffle: False: row groups in file order, the rows of each stream in theirs (a batch still takes a
                mini-slice of every stream; with one stream batches are in file order).
            seed: of the shuffling.
            rank: of this process; it reads streams rank, rank + world_size, ...
            world_size: number of processes.
            negatives: draws items for each batch, as extra rows.

        Raises:
            ValueError: The sizes do not divide, or a column is missing, mistyped, or unlike in two files.
        """
        if streams % world_size:
            valid = ", ".join(str(size) for size in range(1, streams + 1) if streams % size == 0)
            raise ValueError(
                f"world size {world_size} does not divide data.streams {streams}. "
                f"Use {valid} ranks, or streams that are a multiple of {world_size} (another order of samples)."
            )
        if found := schema_problems([(file.path, file.schema) for file in files], encoder.wanted):
            raise ValueError("\n".join(found))
        self._files = files
        self._encoder = encoder
        self._negatives = negatives
        self._groups = [(file, i) for file in files for i in range(file.metadata.num_row_groups)]
        self._streams = range(rank, streams, world_size)
        rows = tuple(count for file in files for count in file.row_groups)
        self.order = Order(rows, batch_size, streams, window, shuffle, seed)
        drawn = 0 if negatives is None else negatives.per_stream
        self._slots = self._places(self.order.slice_rows)
        self._drawn_slots = batch_size + self._places(drawn)  # behind the rows of all ranks
        self._global_size = batch_size + drawn * streams
        self.rows_decoded = 0

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self.order.num_rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return self.order.steps_per_epoch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Read one epoch.

        Args:
            epoch: its number, from 0; each is shuffled anew.
            first_step: step of the epoch to begin at, to resume.

        Yields:
            Batches of batch_size / world_size rows, and those of items drawn; ``step`` counts over epochs.

        Raises:
            ValueError: A row holds a bad value; the file is named.
        """
        if first_step >= self.steps_per_epoch:
            return
        order, cache = self.order.epoch(epoch), dict[int, Rows]()
        per_window = self.order.steps_per_window
        for window in range(first_step // per_window, -(-self.steps_per_epoch // per_window)):
            rows, indices = self._read_window(order, window, cache)
            begin = max(first_step - window * per_window, 0)
            step = epoch * self.steps_per_epoch + window * per_window + begin
            yield from self._batches(rows, indices[begin:], step)

    def _batches(self, rows: Rows, indices: Ints, step: int) -> Iterator[Batch]:
        """Gather the rows of several batches at once, then slice."""
        together = max(1, _GATHERED_ROWS // len(self._slots))
        for begin in range(0, len(indices), together):
            block = indices[begin : begin + together]
            real = block >= 0
            gathered = rows.take(block[real])
            ends = np.cumsum(real.sum(axis=1))
            for i, mask in enumerate(real):
                start, stop = int(ends[i - 1]) if i else 0, int(ends[i])
                yield self._batch(gathered.slice(start, stop), mask, step + begin + i)

    def _batch(self, rows: Rows, real: Bools, step: int) -> Batch:
        """Return one batch, of rows that have the ``real`` ones of this rank's places."""
        slots, more = self._slots, self._drawn_slots
        if self._negatives is None:
            places = np.concatenate([slots[real], slots[~real]])
            return self._encoder.batch(rows, slots=places, step=step, global_size=self._global_size)
        all_rows, there = self._negatives.add(rows, real, step=step, streams=self._streams)
        return self._encoder.batch(
            all_rows,
            slots=np.concatenate([slots[real], more[there], slots[~real], more[~there]]),
            step=step,
            global_size=self._global_size,
            num_drawn=int(there.sum()),
        )

    def _read_window(self, order: EpochOrder, window: int, cache: dict[int, Rows]) -> tuple[Rows, Ints]:
        """Read one window of every stream of this rank.

        Returns:
            The rows, and where those of each step are among them: [steps, B], -1 for padding.
        """
        width, first = self.order.slice_rows, window * self.order.steps_per_window
        steps = min(self.order.steps_per_window, self.steps_per_epoch - first)
        indices = np.full((len(self._streams), steps * width), -1)
        parts, base = [], 0
        for place, stream in zip(indices, self._streams):
            for group, start, stop in order.pieces(stream, window):
                parts.append(self._group(group, cache).slice(start, stop))
            shuffled = order.permutation(stream, window)
            place[: len(shuffled)] = base + shuffled
            base += len(shuffled)
        needed = {piece[0] for stream in self._streams for piece in order.pieces(stream, window + 1)}
        for group in cache.keys() - needed:
            del cache[group]
        by_step = indices.reshape(len(self._streams), steps, width).transpose(1, 0, 2).reshape(steps, -1)
        return Rows.concat(parts or [self._no_rows()]), by_step

    def _group(self, group: int, cache: dict[int, Rows]) -> Rows:
        """Return one row group, encoded."""
        if group not in cache:
            file, index = self._groups[group]
            cache[group] = self._encoder.encode(file.read_row_group(index, self._encoder.columns), file.path)
            self.rows_decoded += len(cache[group])
        return cache[group]

    def _no_rows(self) -> Rows:
        """Return no rows, for a rank whose streams are empty."""
        file = self._files[0]
        return self._encoder.encode(file.schema.empty_table(), file.path)

    def _places(self, width: int) -> Ints:
        """Return the places of this rank's rows in the global batch, of ``width`` a stream."""
        return np.concatenate([np.arange(stream * width, (stream + 1) * width) for stream in self._streams])
