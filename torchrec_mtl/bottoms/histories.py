"""All behaviour sequences of a batch side by side, and attention in which short ones do not pay for long ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from torchrec_mtl.features import Jagged

# Shapes: B batch, J sequences, H = J B histories (those of the first sequence first), N events of all histories,
# S slots of the padded histories (S >= N), M versions of an event, d width.

_FIRST_WIDTHS, _STEP = (1, 2, 4, 8), 8  # what histories are padded to


class Histories:
    """The events of all sequences, one after the other, and after the last a further one of zeros.

    Whatever is done event by event is done on these N + 1 rows, without padding. For attention, histories of about one
    length are padded to one width; where lengths would have to be read back from a device, or a program is exported,
    all are padded to the longest there may be.

    Where all rows read one history of each sequence (``Jagged.readers``), events are computed once, and H = J
    histories have J B queries.

    Args:
        sequences: J of them, of one width d.
        max_length: no history is longer.

    Raises:
        ValueError: one is longer, where lengths need not be read back from a device.

    Attributes:
        values: [N + 1, d].
        counts: events of each sequence; the further one is counted with the last sequence.
        lengths: [H].
    """

    def __init__(self, sequences: Sequence[Jagged], max_length: int) -> None:
        """See the class."""
        first = sequences[0].values
        self.values = torch.cat([*(s.values for s in sequences), first.new_zeros(1, first.shape[1])])
        self.counts = [s.values.shape[0] for s in sequences]
        self.counts[-1] += 1
        self.lengths = torch.cat([s.lengths for s in sequences]).long()
        self.num_events = self.values.shape[0] - 1
        self._readers = sequences[0].readers
        self._offsets = torch.cumsum(self.lengths, 0) - self.lengths
        self._arrange(max_length)

    def ages(self) -> Tensor:
        """Return [N + 1]: 0 for the last event of a history, 1 for the one before it; 0 for the further one."""
        ends = torch.repeat_interleave(self._offsets + self.lengths, self.lengths, output_size=self.num_events)
        ages = ends - 1 - torch.arange(self.num_events, device=ends.device)
        return torch.cat([ages, ages.new_zeros(1)])

    def by_sequence(self, events: Tensor) -> tuple[Tensor, ...]:
        """Cut [N + 1, ...] into a part for each sequence, the further event with the last."""
        return torch.split(events, self.counts)

    def attend(self, qkv: Tensor, num_heads: int) -> Tensor:
        """Return [N + 1, M, d]: what each event takes from all events of its history (multi-head self-attention).

        Args:
            qkv: [N + 1, M, 3 d] queries, keys, values.
            num_heads: heads that share d.
        """
        found = []
        for block, mask in zip(self._padded(qkv), self._masks, strict=True):
            parts = torch.unflatten(block, -1, (3, num_heads, -1))  # [n, L, M, 3, heads, d / heads]
            q, k, v = parts.permute(3, 0, 2, 4, 1, 5).flatten(2, 3).unbind(0)  # [n, M heads, L, d / heads] each
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
            mixed = torch.unflatten(mixed, 1, (-1, num_heads)).permute(0, 3, 1, 2, 4)  # [n, L, M, heads, d / heads]
            found.append(mixed.flatten(3).flatten(0, 1))
        return torch.cat(found).index_select(0, self._slot_of_event)

    def pool(self, events: Tensor, queries: Tensor) -> Tensor:
        """Return [H, M, d]: softmax(q y / sqrt(d)) over the events y of a history, for each of M queries.

        What it returns for an empty history means nothing.

        Args:
            events: [N + 1, M, d], or [N + 1, 1, d] for all queries.
            queries: [H, M, d]; [J B, M, d] where all rows read one history.
        """
        if self._readers is not None:
            return self._pool_of_one(events, queries)
        ordered = torch.split(queries.index_select(0, self._order).unsqueeze(2), [n for n, _ in self._blocks])
        found = []
        for block, q, mask in zip(self._padded(events), ordered, self._masks, strict=True):
            keys = block.transpose(1, 2).expand(-1, q.shape[1], -1, -1)  # [n, M, L, d]
            found.append(scaled_dot_product_attention(q, keys, keys, attn_mask=mask).squeeze(2))
        return torch.cat(found).index_select(0, self._place)

    def _pool_of_one(self, events: Tensor, queries: Tensor) -> Tensor:
        """Return [J B, M, d], as ``pool`` does, of J histories that have B queries each."""
        (block,), (mask,) = self._padded(events), self._masks
        q = torch.unflatten(queries, 0, (block.shape[0], -1)).transpose(1, 2)  # [J, M, B, d]
        keys = block.transpose(1, 2).expand(-1, q.shape[1], -1, -1)  # [J, M, L, d]
        return scaled_dot_product_attention(q, keys, keys, attn_mask=mask).transpose(1, 2).flatten(0, 1)

    def present(self) -> Tensor:
        """Return [H] ([J B] where all rows read one history), 1 for a history with an event, else 0."""
        present = (self.lengths > 0).to(self.values.dtype)
        return present if self._readers is None else present.repeat_interleave(self._readers)

    def _padded(self, events: Tensor) -> list[Tensor]:
        """Return the blocks of histories of one width, [n, L, ...] each, of [N + 1, ...]."""
        return self._cut(events.index_select(0, self._event_of_slot))

    def _cut(self, slots: Tensor) -> list[Tensor]:
        # One split: the gradient of a slice a block would fill and add up [S, ...] for each of them.
        parts = torch.split(slots, [n * width for n, width in self._blocks])
        return [torch.unflatten(part, 0, block) for part, block in zip(parts, self._blocks, strict=True)]

    def _arrange(self, max_length: int) -> None:
        """Give every history its slots, those of one width side by side."""
        lengths, device = self.lengths, self.lengths.device
        widths = _widths(max_length)
        if device.type == "cpu" and self._readers is None and not torch.compiler.is_compiling():
            groups = torch.bucketize(lengths, torch.tensor(widths))
            counts = torch.bincount(groups, minlength=len(widths)).tolist()
            if len(counts) > len(widths):
                longest = int(lengths.max())
                raise ValueError(f"a history has {longest} events, more than its max_length {max_length}; cut it")
            self._blocks = [(n, width) for n, width in zip(counts, widths, strict=True) if n]
            padded = torch.tensor(widths)[groups]
        else:  # a tensor made of numbers would have to be copied to the device in each step
            self._blocks = [(lengths.numel(), max_length)]
            padded = torch.full_like(lengths, max_length)
        self._order = torch.argsort(padded, stable=True)
        places = torch.arange(lengths.shape[0], device=device)
        self._place = torch.zeros_like(self._order).scatter_(0, self._order, places)
        self._fill(padded[self._order])

    def _fill(self, widths: Tensor) -> None:
        """Say which event each slot reads, and the other way round.

        Args:
            widths: [H] slots of each history, in the order of the slots.
        """
        num_slots = sum(n * width for n, width in self._blocks)
        firsts = torch.cumsum(widths, 0) - widths
        lengths, starts = self.lengths[self._order], self._offsets[self._order]
        numbers = torch.arange(widths.shape[0], device=widths.device)
        rows = torch.repeat_interleave(numbers, widths, output_size=num_slots)
        places = torch.arange(num_slots, device=widths.device) - firsts[rows]
        filled = places < lengths[rows]
        self._event_of_slot = torch.where(filled, starts[rows] + places, self.num_events)
        # Softmax over nothing is NaN: an empty history looks at its first slot, which reads zeros.
        self._masks = [mask[:, None, None, :] for mask in self._cut(filled | (places == 0))]
        of_history = firsts[self._place] - self._offsets
        shift = torch.repeat_interleave(of_history, self.lengths, output_size=self.num_events)
        slots = shift + torch.arange(self.num_events, device=widths.device)
        self._slot_of_event = torch.cat([slots, slots.new_zeros(1)])


def _widths(max_length: int) -> list[int]:
    """Return the widths that histories of at most ``max_length`` events are padded to."""
    widths = [w for w in (*_FIRST_WIDTHS, *range(2 * _STEP, max_length, _STEP)) if w < max_length]
    return [*widths, max_length]


def alike(sequences: Sequence[Jagged]) -> list[Jagged]:
    """Return sequences that all rows read, or that each row has of its own; where both come together, the latter."""
    mixed = len({s.readers is None for s in sequences}) > 1
    return [s.repeated() for s in sequences] if mixed else list(sequences)
