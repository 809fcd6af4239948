"""DTRN equals its equations in loops over tasks, sequences, and rows, and keeps the tasks apart as the paper wants."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from tests.unit.bottoms.reference import representations
from tests.unit.bottoms.sequences import (
    BATCHES,
    NUM_ROWS,
    TASKS,
    WIDTH,
    features_of,
    leaves,
    padded,
    randomised,
    rows_of,
    sequence,
    spec_of,
)
from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.bottoms.dtrn import DTRN
from torchrec_mtl.features import Features, FeaturesSpec, FieldSpec, Jagged
from torchrec_mtl.testing.subject import gradients_of, weighted

K, TASK_DIM, BEHAVIOR_DIM = len(TASKS), 2, 3
SMALL = {"task_dim": TASK_DIM, "behavior_dim": BEHAVIOR_DIM, "hyper": (5,), "ffn": 2, "reduction": 2}
TIMED = spec_of(sequence("clicked", gaps=True), sequence("bought"), sequence("seen", target=None))
FIRST = 3 + WIDTH  # columns of the fields, which come first


def build(spec=None, tasks=TASKS, *, start=False, dtype=torch.float64, **options):
    torch.manual_seed(0)
    small = {name: value for name, value in SMALL.items() if name not in without(options)}
    bottom = DTRN(spec or spec_of(), tasks, DTRN.Config(**small | options))
    return bottom.to(dtype) if start else randomised(bottom, dtype)


def without(options):
    """Sizes that would be refused."""
    idle = {"reduction"} if options.get("refinement") == "none" else set()
    if options.get("interest", "conditional") != "conditional":
        idle |= {"task_dim", "behavior_dim", "hyper"}
    if options.get("interest") == "pooled":
        idle |= {"ffn"}
    return idle | {"task": {"behavior_dim"}, "behavior": {"task_dim"}}.get(options.get("condition"), set())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": 2, "heads": 4, "squeeze": "flat", "granularity": "bit"},
        {"refinement": "none", "positions": False},
        {"refinement": "shared", "condition": "task"},
        {"condition": "behavior", "granularity": "bit"},
        {"pool": "mean", "squeeze": "flat", "heads": 1},
        {"interest": "plain", "layers": 2},
        {"interest": "plain", "refinement": "shared"},
        {"interest": "plain", "refinement": "none", "pool": "mean"},
        {"interest": "pooled", "squeeze": "flat"},
        {"interest": "pooled", "refinement": "shared", "granularity": "bit"},
        {"interest": "pooled", "refinement": "none"},
    ],
    ids=str,
)
def test_representations_and_gradients_equal_loops(options):
    bottom, features = build(TIMED, **options), features_of(TIMED)
    given = bottom(features)
    found, expected = given.by_task().expand(K, -1, -1), representations(bottom, features, K)
    assert found.shape == (K, NUM_ROWS, bottom.out_features)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(given.shared, expected.mean(0))
    of = [*leaves(features), *bottom.parameters()]
    for one, other in zip(*(gradients_of(weighted(o), of) for o in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)
    assert given.features is features


@pytest.mark.parametrize("options", [{"interest": "plain"}, {"interest": "pooled"}], ids=str)
@pytest.mark.parametrize("refinement", ["shared", "none"])
def test_where_nothing_tells_tasks_apart_they_share_one_representation(options, refinement):
    assert build(refinement=refinement, **options)(features_of(spec_of())).per_task is None


@pytest.mark.parametrize("refinement", ["shared", "none"])
def test_norms_that_know_no_task_make_one_representation(refinement):
    assert build(condition="behavior", refinement=refinement)(features_of(spec_of())).per_task is None


def test_at_first_all_tasks_read_the_same_bit_by_bit():
    """Hyper-network and gates start at zero: plain norms, and factors of one."""
    found = build(start=True)(features_of(spec_of())).per_task
    assert torch.equal(found, found[:1].expand(K, -1, -1))
    plain = build(start=True, refinement="none")(features_of(spec_of())).per_task
    assert torch.equal(found, plain)


def test_at_first_pooled_interests_are_the_columns_of_concat_bit_by_bit():
    spec, features = spec_of(), features_of(spec_of())
    found = build(spec, start=True, interest="pooled")(features).per_task
    columns = Concat(spec, TASKS, Concat.Config())(features).shared
    assert torch.equal(found, columns.expand(K, -1, -1))


@pytest.mark.parametrize("k", range(K))
def test_a_tasks_own_weights_reach_its_own_representation_alone_bit_by_bit(k):
    bottom, features = build(), features_of(spec_of())
    others = [i for i in range(K) if i != k]
    for weights in (bottom.interest.norms.tasks, *bottom.refinement.parameters()):
        before = bottom(features).per_task
        with torch.no_grad():
            weights[k] += 1
        after = bottom(features).per_task
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[k], before[k])


@pytest.mark.parametrize("j", range(3))
def test_a_behaviours_embedding_reaches_its_column_of_every_task_bit_by_bit(j):
    bottom, features = build(refinement="none"), features_of(spec_of())
    before = bottom(features).per_task
    with torch.no_grad():
        bottom.interest.norms.behaviors[j] += 1
    moved = (bottom(features).per_task != before).any(1)
    columns = torch.zeros(bottom.out_features, dtype=torch.bool)
    columns[FIRST + j * WIDTH : FIRST + (j + 1) * WIDTH] = True
    assert torch.equal(moved, columns.expand(K, -1))


def test_a_tasks_loss_reaches_its_own_weights_and_what_all_share():
    bottom, features = build(), features_of(spec_of())
    own = [bottom.interest.norms.tasks, *bottom.refinement.parameters()]
    shared = [p for p in bottom.parameters() if all(p is not q for q in own)]
    for k, o in enumerate(bottom(features).per_task):
        for gradient in gradients_of(weighted(o), own):
            assert gradient.flatten(1).abs().sum(1).nonzero().flatten().tolist() == [k]
        assert all(g.abs().sum() > 0 for g in gradients_of(weighted(o), shared))


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("start", [True, False])
def test_values_and_gradients_are_finite_for_any_histories(lengths, start):
    bottom, features = build(start=start, dtype=torch.float32), features_of(spec_of(), lengths, torch.float32)
    found = bottom(features).per_task
    assert torch.isfinite(found).all()
    for gradient in gradients_of(weighted(found), [*leaves(features), *bottom.parameters()]):
        assert torch.isfinite(gradient).all()


def test_a_row_alone_equals_the_row_in_a_batch():
    bottom, features = build(TIMED, dtype=torch.float32), features_of(TIMED, dtype=torch.float32)
    whole = bottom(features).per_task
    for b in range(NUM_ROWS):
        torch.testing.assert_close(bottom(rows_of(features, [b])).per_task[:, 0], whole[:, b], rtol=1e-6, atol=1e-6)


def test_rows_of_padding_change_no_other():
    bottom, features = build(), features_of(spec_of())
    found = bottom(padded(features, 3)).per_task
    torch.testing.assert_close(found[:, :NUM_ROWS], bottom(features).per_task)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"interest": "plain"}, {"interest": "pooled"}], ids=str)
def test_a_folded_one_gives_the_same(options, dtype, bound):
    bottom, features = build(TIMED, dtype=dtype, **options), features_of(TIMED, dtype=dtype)
    folded = bottom.folded()
    with torch.no_grad():
        found, expected = folded(features), bottom(features)
    for mine, theirs in ((found.per_task, expected.per_task), (found.shared, expected.shared)):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=bound * float(theirs.abs().max()))
    assert not [name for name, _ in folded.named_parameters() if "norms" in name]


def size(*args, **options):
    return sum(p.numel() for p in build(*args, **options).parameters())


def gates(inputs):
    """Weights of one task's gates over so many features."""
    hidden = max(inputs // SMALL["reduction"], 1)
    return (inputs + 1) * hidden + (hidden + 1) * inputs


def test_one_more_task_costs_its_embedding_and_its_gates():
    more = (*TASKS, "share")
    num_features = 2 + 3 + 2
    assert size(tasks=more) - size() == TASK_DIM + gates(num_features)
    assert size(tasks=more, refinement="none") - size(refinement="none") == TASK_DIM
    assert size(tasks=more, refinement="shared") - size(refinement="shared") == TASK_DIM
    assert size(tasks=more, interest="pooled") - size(interest="pooled") == gates(num_features)


def test_one_more_type_of_behaviour_costs_its_embedding_and_a_feature_of_each_gate():
    more = spec_of(*spec_of().sequences, sequence("shared"))
    assert size(more, refinement="none") - size(refinement="none") == BEHAVIOR_DIM
    assert size(more) - size() == BEHAVIOR_DIM + K * (gates(8) - gates(7))


def test_one_more_sequence_of_a_known_type_shares_its_embedding():
    more = spec_of(*spec_of().sequences, sequence("bought_long_ago", behavior="bought"))
    assert size(more, refinement="none") == size(refinement="none")


class Ranker(nn.Module):
    """A transformer of torch's own over one history, and attention of the target to it."""

    def __init__(self, bottom):
        super().__init__()
        self.positions, self.query = bottom.interest.positions, bottom.interest.query
        (mine,) = bottom.interest.transformer.layers
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)
        attention = self.layer.self_attn
        attention.in_proj_weight, attention.in_proj_bias = mine.qkv.weight, mine.qkv.bias
        attention.out_proj.weight, attention.out_proj.bias = mine.out.weight, mine.out.bias
        self.layer.linear1, self.layer.linear2 = mine.first, mine.second
        scale, shift = (x.flatten(1).detach() for x in bottom.interest.norms())
        for norm, weight, bias in zip((self.layer.norm1, self.layer.norm2), scale, shift, strict=True):
            norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, features):
        s = features.sequences["clicked"]
        events = torch.split(s.values, s.lengths.tolist())
        x = nn.utils.rnn.pad_sequence([e + self.positions[: len(e)].flip(0) for e in events], batch_first=True)
        beyond = torch.arange(x.shape[1]) >= s.lengths[:, None]
        y = self.layer(x, src_key_padding_mask=beyond)
        q = self.query(layer_norm(features.fields["item_id"], (WIDTH,)))
        scores = torch.einsum("bld,bd->bl", y, q) / math.sqrt(WIDTH)
        weights = torch.softmax(scores.masked_fill(beyond, -math.inf), dim=1)
        s = torch.einsum("bl,bld->bd", weights, y)
        return torch.cat([features.fields["user_id"], features.fields["item_id"], s, features.dense], dim=1)


@pytest.mark.parametrize("interest", ["conditional", "plain"])
def test_with_one_task_and_one_sequence_it_is_a_plain_ranker(interest):
    spec = spec_of(sequence("clicked"))
    bottom = build(spec, ("click",), refinement="none", interest=interest)
    features = features_of(spec, {"clicked": [9, 1, 4, 2, 5, 1]})
    ranker = Ranker(bottom).double()
    found, expected = bottom(features).of_task(0), ranker(features)
    torch.testing.assert_close(found, expected)
    shared = [p for name, p in bottom.named_parameters() if "norms" not in name]
    of = [*leaves(features), *shared]
    for one, other in zip(*(gradients_of(weighted(o), of) for o in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)
    if interest == "plain":
        norms = bottom.interest.norms
        mine = gradients_of(weighted(found), [norms.weight, norms.bias])
        theirs = [[getattr(n, part) for n in (ranker.layer.norm1, ranker.layer.norm2)] for part in ("weight", "bias")]
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one.flatten(1), torch.stack(gradients_of(weighted(expected), other)))


def test_gradients_equal_differences():
    spec = FeaturesSpec(
        (FieldSpec("item_id", 2, "item", "item"),), (sequence("clicked", width=2), sequence("bought", width=2)), ()
    )
    bottom = build(spec, ("click", "buy"), heads=1)
    lengths = {"clicked": [2, 0], "bought": [0, 3]}
    given = [*leaves(features_of(spec, lengths))[:-1], *bottom.parameters()]
    names = [name for name, _ in bottom.named_parameters()]

    def representation(item, *values):
        sequences = {n: Jagged(x, torch.tensor(lengths[n])) for n, x in zip(("bought", "clicked"), values)}
        features = Features({"item_id": item}, sequences, item.new_zeros(2, 0), spec)
        weights = dict(zip(names, values[2:], strict=True))
        return torch.func.functional_call(bottom, weights, (features,)).per_task

    assert torch.autograd.gradcheck(representation, given, fast_mode=True)
