"""The Gramian of row gradients, from the boundary's gradients, equals that of dense tables."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import embedding_bag
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.boundary import Boundary
from torchrec_mtl.gradients.layout import Layout, PooledField, order_tables
from torchrec_mtl.gradients.rows import Ids, RowGramian

K, B = 3, 6
DIMS = {"video": 8, "user": 4, "tag": 8}  # rows of each: few, so that ids repeat
ROWS = 5


class World:
    """Three pooled fields of two tables; two sequences, one in a table of its own."""

    def __init__(self, lengths, draw, rows=ROWS):
        names, dims = order_tables(DIMS)
        number = {name: i for i, name in enumerate(names)}
        self.tables = [torch.randn(rows, dim, dtype=torch.float64).requires_grad_() for dim in dims]
        fields = [("video", 4, True), ("user", 0, False), ("video", 12, False)]  # table, column, mean
        self.layout = Layout(
            names, dims, tuple(PooledField(number[t], c, m) for t, c, m in fields), (number["tag"], number["video"])
        )
        self.ids = [draw(n, rows) for n in lengths]
        bags = torch.tensor(lengths[: 3 * B], dtype=torch.int32)
        pooled = KeyedJaggedTensor(["a", "b", "c"], torch.cat(self.ids[: 3 * B]), lengths=bags)
        self.unpooled = [torch.cat(self.ids[3 * B : 4 * B]), torch.cat(self.ids[4 * B :])]
        self.lookups = Ids(pooled, tuple(self.unpooled))

    def tensors(self):
        by_name = dict(zip(self.layout.tables, self.tables))
        outputs = []
        for i, (table, mean) in enumerate((("video", True), ("user", False), ("video", False))):
            bags = self.ids[i * B : (i + 1) * B]
            starts = torch.tensor([0, *[len(b) for b in bags]]).cumsum(0)[:-1]
            outputs.append(embedding_bag(torch.cat(bags), by_name[table], starts, mode="mean" if mean else "sum"))
        first = torch.cat([outputs[1], outputs[0], outputs[2]], 1)
        return [first, by_name["tag"][self.unpooled[0]], by_name["video"][self.unpooled[1]]]


def losses(tensors):
    g = torch.Generator().manual_seed(3)
    return torch.stack(
        [
            sum((torch.tanh(t) @ torch.randn(t.shape[1], dtype=t.dtype, generator=g)).square().sum() for t in tensors)
            for _ in range(K)
        ]
    )


def dense(world, by_table=False):
    """Ten lines of plain autograd on whole tables."""
    values = losses(world.tensors())
    grads = [torch.autograd.grad(v, world.tables, retain_graph=True, materialize_grads=True) for v in values]
    parts = [torch.stack([g[i].flatten() for g in grads]) for i in range(len(world.tables))]
    gramians = torch.stack([p @ p.T for p in parts])
    return gramians if by_table else gramians.sum(0, keepdim=True)


def by_rows(world, by_table=False):
    tensors = world.tensors()
    grads = [torch.autograd.grad(v, tensors, retain_graph=True, materialize_grads=True) for v in losses(tensors)]
    return RowGramian(world.layout, by_table=by_table)([torch.stack(g) for g in zip(*grads)], world.lookups)


def random_ids(n, rows):
    return torch.randint(rows, (n,))


@pytest.mark.parametrize("by_table", [False, True])
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 4), min_size=5 * B, max_size=5 * B), seed=st.integers(0, 1000))
def test_rows_equal_dense(by_table, lengths, seed):
    torch.manual_seed(seed)
    world = World(lengths, random_ids)
    torch.testing.assert_close(by_rows(world, by_table), dense(world, by_table), rtol=1e-9, atol=1e-9)


def test_no_ids_at_all_are_zero():
    world = World([0] * 5 * B, random_ids)
    assert torch.equal(by_rows(world), torch.zeros(1, K, K, dtype=torch.float64))


class Keeps(GradientRule):
    """Remembers the Gramian."""

    needs = "gramian"
    Config = RuleConfig

    def weights(self, gramian, losses):
        return torch.ones(len(gramian), K)


def boundary_gramian(world, exact):
    boundary = Boundary(Keeps(RuleConfig(type="keeps"), "abc"), exact=exact)
    tensors = world.tensors()
    values = losses(tensors)
    boundary.tables = world.tables if exact == "dense" else ()
    boundary.prepare(step=0, losses=values, layout=world.layout, ids=world.lookups)
    boundary.per_task_passes(values, tensors)
    return boundary.gramian


def test_boundary_equals_rows_and_dense_where_no_row_is_looked_up_twice():
    torch.manual_seed(0)
    fresh = iter(torch.randperm(200))
    world = World([1] * 5 * B, lambda n, rows: torch.stack([next(fresh) for _ in range(n)]), rows=200)
    found = {exact: boundary_gramian(world, exact).double() for exact in ("boundary", "rows", "dense")}
    torch.testing.assert_close(found["rows"], found["dense"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["boundary"], found["dense"], rtol=1e-5, atol=1e-5)


def test_boundary_differs_with_duplicates_and_rows_do_not():
    torch.manual_seed(0)
    world = World([3] * 5 * B, random_ids)
    found = {exact: boundary_gramian(world, exact).double() for exact in ("boundary", "rows", "dense")}
    torch.testing.assert_close(found["rows"], found["dense"], rtol=1e-6, atol=1e-6)
    assert (found["boundary"] - found["dense"]).abs().max() > 0.05 * found["dense"].abs().max()


def test_rows_without_ids_say_what_is_missing():
    boundary = Boundary(Keeps(RuleConfig(type="keeps"), "abc"), exact="rows")
    tensors = World([1] * 5 * B, random_ids).tensors()
    with pytest.raises(ValueError, match="pass layout and ids"):
        boundary.per_task_passes(losses(tensors), tensors)


def test_dense_without_tables_says_what_to_do():
    boundary = Boundary(Keeps(RuleConfig(type="keeps"), "abc"), exact="dense")
    tensors = World([1] * 5 * B, random_ids).tensors()
    with pytest.raises(ValueError, match="use exact: rows"):
        boundary.per_task_passes(losses(tensors), tensors)
    with pytest.raises(ValueError, match="per_task_passes"):
        boundary.fan_out(tensors, K)
