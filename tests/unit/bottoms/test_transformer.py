"""All pairs at once equal one pair after the other, and a plain transformer where there is one pair."""

import pytest
import torch
from torch import nn

from tests.unit.bottoms.reference import transformed
from tests.unit.bottoms.sequences import LENGTHS, randomised
from torchrec_mtl.bottoms.histories import Histories
from torchrec_mtl.bottoms.transformer import ConditionalTransformer, FoldedLayer, Layer
from torchrec_mtl.features import Jagged
from torchrec_mtl.testing.subject import gradients_of, weighted

K, D, HEADS, HIDDEN = 3, 4, 2, 6


def build(layers=1, dtype=torch.float64):
    return randomised(ConditionalTransformer(D, layers, HEADS, HIDDEN), dtype)


def inputs(lengths=None, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    lengths = lengths or LENGTHS.values()
    histories = Histories([Jagged(torch.zeros(sum(n), D, dtype=dtype), torch.tensor(n)) for n in lengths], 9)
    return histories, torch.randn(len(histories.values), D, generator=g, dtype=dtype, requires_grad=True)


def affines(layers, sequences=3, tasks=K, dtype=torch.float64):
    g = torch.Generator().manual_seed(2)
    shape = (2 * layers, sequences, tasks, D)
    return [torch.randn(*shape, generator=g, dtype=dtype, requires_grad=True) for _ in range(2)]


def finished(histories, y, scale, shift):
    """[N, K, d]: the events with the last scale and shift, which are left to the caller."""
    parts = histories.by_sequence(y)
    return torch.cat([scale[-1, j] * part + shift[-1, j] for j, part in enumerate(parts)])[:-1]


def one_by_one(transformer, lengths, x, scale, shift):
    """[N, K, d], each history of each task by itself."""
    rows, start = [], 0
    for j, of_sequence in enumerate(lengths):
        for length in of_sequence:
            events = x[start : start + length]
            tasks = [list(zip(scale[:, j, k], shift[:, j, k])) for k in range(scale.shape[2])]
            rows.append(torch.stack([transformed(transformer.layers, events, norms) for norms in tasks], dim=1))
            start += length
    return torch.cat(rows)


@pytest.mark.parametrize("tasks", [1, K])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_all_pairs_at_once_equal_the_loop_over_pairs(layers, tasks):
    transformer, (histories, x), (scale, shift) = build(layers), inputs(), affines(layers, tasks=tasks)
    found = finished(histories, transformer(histories, x, scale, shift), scale, shift)
    expected = one_by_one(transformer, LENGTHS.values(), x, scale, shift)
    torch.testing.assert_close(found, expected)
    of = [x, scale, shift, *transformer.parameters()]
    for one, other in zip(*(gradients_of(weighted(y), of) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def copied(transformer, scale, shift):
    """The same weights in torch's own layers, whose norms are one pair's."""
    layers = []
    for i, layer in enumerate(transformer.layers):
        theirs = nn.TransformerEncoderLayer(D, HEADS, HIDDEN, dropout=0.0, batch_first=True).double()
        state = {
            "self_attn.in_proj_weight": layer.qkv.weight,
            "self_attn.in_proj_bias": layer.qkv.bias,
            "self_attn.out_proj.weight": layer.out.weight,
            "self_attn.out_proj.bias": layer.out.bias,
            "linear1.weight": layer.first.weight,
            "linear1.bias": layer.first.bias,
            "linear2.weight": layer.second.weight,
            "linear2.bias": layer.second.bias,
            "norm1.weight": scale[2 * i],
            "norm1.bias": shift[2 * i],
            "norm2.weight": scale[2 * i + 1],
            "norm2.bias": shift[2 * i + 1],
        }
        theirs.load_state_dict({name: value.detach() for name, value in state.items()})
        layers.append(theirs)
    return layers


@pytest.mark.parametrize("layers", [1, 2])
def test_each_pair_is_a_transformer_of_torchs_own_on_padded_histories(layers):
    transformer, (histories, x), (scale, shift) = build(layers), inputs(), affines(layers)
    found = finished(histories, transformer(histories, x, scale, shift), scale, shift)
    start = 0
    for j, lengths in enumerate(LENGTHS.values()):
        some = [n for n in lengths if n]  # torch's layers make NaN of an empty history
        end = start + sum(some)
        for k in range(K):
            padded = nn.utils.rnn.pad_sequence(torch.split(x[start:end], some), batch_first=True, padding_value=7.0)
            mask = torch.arange(padded.shape[1]) >= torch.tensor(some)[:, None]
            theirs = padded
            for layer in copied(transformer, scale[:, j, k], shift[:, j, k]):
                theirs = layer(theirs, src_key_padding_mask=mask)
            torch.testing.assert_close(found[start:end, k], theirs[~mask])
        start = end


def widths_read(transformer, layers):
    """Versions of an event that each layer's first map is given."""
    seen = []
    for layer in transformer.layers:
        layer.qkv.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    transformer(*inputs(), *affines(layers))
    return seen


def test_the_first_attention_is_computed_once_for_all_tasks():
    assert widths_read(build(3), 3) == [1, K, K]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("tasks", [1, K])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_folded_one_gives_the_same(layers, tasks, dtype, bound):
    transformer, (histories, x) = build(layers, dtype), inputs(dtype=dtype)
    scale, shift = affines(layers, tasks=tasks, dtype=dtype)
    found = transformer.folded(scale, shift)(histories, x, scale, shift)
    torch.testing.assert_close(found, transformer(histories, x, scale, shift), rtol=0, atol=bound)


def test_what_is_folded_needs_no_gradient():
    folded = build(2).folded(*affines(2))
    assert all(isinstance(layer, FoldedLayer) for layer in folded.layers)
    assert len(list(folded.buffers())) == 4
    assert not any(b.requires_grad for b in folded.buffers())


def test_a_folded_one_shares_all_other_weights():
    transformer, (scale, shift) = build(2), affines(2)
    folded = transformer.folded(scale, shift)
    for mine, theirs in zip(folded.layers, transformer.layers, strict=True):
        for name in ("qkv", "out", "second"):
            assert getattr(mine, name) is getattr(theirs, name)


def test_an_empty_sequence_among_others_can_be_folded_too():
    lengths = [[0, 0], [2, 1], [0, 0]]
    transformer, (histories, x), (scale, shift) = build(), inputs(lengths), affines(1)
    found = transformer.folded(scale, shift)(histories, x, scale, shift)
    torch.testing.assert_close(found, transformer(histories, x, scale, shift))


def test_its_size_depends_on_neither_tasks_nor_sequences():
    (layer,) = ConditionalTransformer(D, 1, HEADS, HIDDEN).layers
    assert isinstance(layer, Layer)
    size = sum(p.numel() for p in layer.parameters())
    assert size == 4 * D * D + 4 * D + 2 * D * HIDDEN + HIDDEN + D
    two = ConditionalTransformer(D, 2, HEADS, HIDDEN)
    assert sum(p.numel() for p in two.parameters()) == 2 * size
