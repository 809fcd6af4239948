"""Tables, their initialisation, and the way back from TorchRec's outputs to named features."""

import dataclasses
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.embeddings import Embeddings, FeatureReader, features_spec, table_copies
from torchrec_mtl.initial import initialise_tables

TASKS = ("click", "buy")
B = 5


def make_features(tables=("user", "item", "tag"), pooling="mean", dated=False) -> FeaturesConfig:
    """User ids in the EBC, tags (lists) there too; item ids and tags of a history in the EC beside the sequences."""
    moments = {"seen": {"times": "seen_at", "now": "now"}} if dated else {}
    every = {
        "user": {"name": "user", "rows": 20, "dim": 3},
        "tag": {"name": "tag", "rows": 9, "dim": 2, "pooling": pooling},
        "item": {"name": "item", "rows": 30, "dim": 4, "pooling": pooling},
    }
    sparse = [("tags", "tag"), ("item_id", "item"), ("user_id", "user"), ("basket", "item"), ("friend_id", "user")]
    sequences = [("seen", "item"), ("bought", "item")]
    return FeaturesConfig.model_validate(
        {
            "tables": [every[name] for name in tables],
            "sparse": [{"name": f, "table": t} for f, t in sparse if t in tables],
            "sequences": [
                {"name": f, "table": t, "max_length": 4, **moments.get(f, {})} for f, t in sequences if t in tables
            ],
            "dense": ["age"],
        }
    )


def make_batch(features) -> tuple[Batch, dict[str, list[list[int]]]]:
    """Return a batch and its ids by feature and row; some rows have none."""
    torch.manual_seed(0)
    rows = {t.name: t.rows for t in features.tables}
    ids = {
        f.name: [torch.randint(0, rows[f.table], (int(n),)).tolist() for n in torch.randint(0, 4, (B,))]
        for f in (*features.sparse, *features.sequences)
    }

    def keyed(some):
        keys = [f.name for f in some]
        flat = [i for key in keys for row in ids[key] for i in row]
        lengths = [len(row) for key in keys for row in ids[key]]
        return KeyedJaggedTensor(
            keys, torch.tensor(flat, dtype=torch.int64), lengths=torch.tensor(lengths, dtype=torch.int64)
        )

    batch = Batch(
        dense=torch.randn(B, 1),
        sparse=keyed(features.pooled),
        sequences=keyed(features.unpooled),
        labels=torch.zeros(B, 2),
        weights=torch.ones(B, 2),
        valid=torch.tensor([1.0] * (B - 1) + [0.0]),
        rows=torch.arange(B) + 10,
        ids={},
        step=4,
        global_size=20,
    )
    return batch, ids


def weights_by_table(embeddings) -> dict[str, torch.Tensor]:
    return {name.split(".")[-2]: p for name, p in embeddings.named_parameters()}


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("tasks", [TASKS, TASKS[:1]], ids=["two tasks", "one task"])
@pytest.mark.parametrize("sharing", ["shared", "own", "both"])
@pytest.mark.parametrize("tables", [("user", "item", "tag"), ("item", "tag"), ("user", "tag"), ("item",)], ids="+".join)
def test_features_equal_direct_look_ups(sharing, tables, tasks, pooling):
    features = make_features(tables, pooling)
    embeddings, reader = Embeddings(features, sharing, tasks, device="cpu"), FeatureReader(features, sharing, tasks)
    torch.manual_seed(1)
    weights = weights_by_table(embeddings)
    for p in weights.values():
        torch.nn.init.normal_(p)
    batch, ids = make_batch(features)
    embedded = reader.read(*embeddings(batch))
    found = reader.features(embedded, batch, seed=6)
    how = {t.name: t.pooling for t in features.tables}
    sparse, sequences = {f.name: f.table for f in features.sparse}, {f.name: f.table for f in features.sequences}

    def looked_up(feature, table):
        return [weights[table][torch.tensor(row, dtype=torch.int64)] for row in ids[feature]]

    owners = [t for _, t in table_copies("", sharing, tasks)]
    suffixes = {None: ""} | {task: f"@{task}" for task in tasks}
    assert set(found.fields) == {f"{name}{suffixes[t]}" for name in sparse for t in owners}
    assert set(found.sequences) == {f"{name}{suffixes[t]}" for name in sequences for t in owners}
    assert [f.name for f in found.spec.fields] == [f"{name}{suffixes[t]}" for name in sparse for t in owners]
    for task in owners:
        for name, table in sparse.items():
            rows = looked_up(name, f"{table}{suffixes[task]}")
            sums = torch.stack([r.sum(0) / (max(len(r), 1) if how[table] == "mean" else 1) for r in rows])
            torch.testing.assert_close(found.fields[f"{name}{suffixes[task]}"], sums)
        for name, table in sequences.items():
            jagged = found.sequences[f"{name}{suffixes[task]}"]
            torch.testing.assert_close(jagged.values, torch.cat(looked_up(name, f"{table}{suffixes[task]}")))
            assert jagged.lengths.tolist() == [len(row) for row in ids[name]]
    assert found.dense is batch.dense
    assert found.valid is batch.valid
    assert (found.noise.seed, found.noise.step, found.noise.global_size) == (6, 4, 20)
    assert torch.equal(found.noise.rows, batch.rows)


@pytest.mark.parametrize("sharing", ["shared", "own", "both"])
def test_gaps_lie_beside_the_embeddings_of_their_sequence_in_every_copy(sharing):
    plain, dated = make_features(), make_features(dated=True)
    batch, ids = make_batch(dated)
    gaps = {"seen": torch.tensor([i % 32 for row in ids["seen"] for i in row])}
    batch = dataclasses.replace(batch, gaps=gaps)
    embeddings = Embeddings(dated, sharing, TASKS, device="cpu")
    found, without = (
        reader.features(reader.read(*embeddings(batch)), batch, seed=6)
        for reader in (FeatureReader(dated, sharing, TASKS), FeatureReader(plain, sharing, TASKS))
    )
    for spec in found.spec.sequences:
        sequence = found.sequences[spec.name]
        assert torch.equal(sequence.values, without.sequences[spec.name].values)
        assert spec.gaps == spec.name.startswith("seen")
        assert sequence.gaps is (gaps["seen"] if spec.gaps else None)
        assert without.sequences[spec.name].gaps is None
    for name, x in found.fields.items():
        assert torch.equal(x, without.fields[name])


@pytest.mark.parametrize("sharing", ["shared", "own", "both"])
def test_every_path_from_shared_tables_crosses_the_boundary_and_none_from_own_ones(sharing):
    features = make_features()
    embeddings, reader = Embeddings(features, sharing, TASKS, device="cpu"), FeatureReader(features, sharing, TASKS)
    batch, _ = make_batch(features)
    embedded = reader.read(*embeddings(batch))
    view = [torch.zeros_like(t, requires_grad=True) for t in embedded.shared]
    cut = reader.features(embedded, batch, 0, view)
    sum(x.sum() for x in (*cut.fields.values(), *(s.values for s in cut.sequences.values()))).backward()
    tables = weights_by_table(embeddings)
    reached = {name for name, p in tables.items() if p.grad is not None and (p.grad != 0).any()}
    assert reached == {name for name in tables if "@" in name}
    assert bool(embedded.shared) == (sharing != "own")


def test_a_view_takes_the_place_of_the_shared_tensors():
    features = make_features()
    embeddings, reader = Embeddings(features, "both", TASKS, device="cpu"), FeatureReader(features, "both", TASKS)
    batch, _ = make_batch(features)
    embedded = reader.read(*embeddings(batch))
    plain = reader.features(embedded, batch, 0)
    doubled = reader.features(embedded, batch, 0, [2 * t for t in embedded.shared])
    for name, x in plain.fields.items():
        torch.testing.assert_close(doubled.fields[name], x if "@" in name else 2 * x)
    for name, s in plain.sequences.items():
        torch.testing.assert_close(doubled.sequences[name].values, s.values if "@" in name else 2 * s.values)


def test_spec_describes_tables_sides_and_targets():
    features = FeaturesConfig.model_validate(
        {
            "tables": [{"name": "item", "rows": 5, "dim": 4}],
            "sparse": [{"name": "item_id", "table": "item", "side": "item"}],
            "sequences": [{"name": "seen", "table": "item", "max_length": 7, "target": "item_id"}],
            "dense": [{"name": "age", "side": "user"}],
        }
    )
    spec = features_spec(features, "both", ("click",))
    assert [(f.name, f.table, f.task, f.side, f.dim) for f in spec.fields] == [
        ("item_id", "item", None, "item", 4),
        ("item_id@click", "item@click", "click", "item", 4),
    ]
    assert [(s.name, s.target, s.behavior, s.max_length) for s in spec.sequences] == [
        ("seen", "item_id", "seen", 7),
        ("seen@click", "item_id@click", "seen", 7),
    ]
    assert [(d.name, d.side) for d in spec.dense] == [("age", "user")]


# Initialisation.

BLOCK = 65_536
BIG = FeaturesConfig.model_validate(
    {
        "tables": [
            {"name": "big", "rows": BLOCK + 100, "dim": 4},
            {"name": "small", "rows": 50, "dim": 4, "init": 0.5},
        ],
        "sparse": [{"name": "a", "table": "big"}, {"name": "b", "table": "small"}],
    }
)


def initialised(seed=0, features=BIG, **tables) -> dict[str, torch.Tensor]:
    """Return whole tables, by default one plain tensor each."""
    state = {f"embeddings.ebc.embedding_bags.{t}.weight": w for t, w in (tables or blank(features)).items()}
    initialise_tables(state, features, seed)
    return {key.split(".")[-2]: w for key, w in state.items()}


def blank(features=BIG):
    return {t.name: torch.full((t.rows, t.dim), torch.nan) for t in features.tables}


class Sharded:
    """What TorchRec's state dicts hold for a sharded table: parts of it, each with its offset."""

    def __init__(self, *parts: tuple[torch.Tensor, int, int]):
        self.parts = parts

    def local_shards(self):
        return [SimpleNamespace(tensor=t, metadata=SimpleNamespace(shard_offsets=[r, c])) for t, r, c in self.parts]


def cut(rows, columns, table="big") -> Sharded:
    """Return blank parts of a table, cut at these rows and columns."""
    whole = blank()[table]
    rows, columns = [0, *rows, whole.shape[0]], [0, *columns, whole.shape[1]]
    return Sharded(
        *((whole[r0:r1, c0:c1].clone(), r0, c0) for r0, r1 in pairwise(rows) for c0, c1 in pairwise(columns))
    )


@pytest.mark.parametrize(
    ("rows", "columns"),
    [([], [2]), ([], [1, 3]), ([BLOCK], []), ([BLOCK - 1], []), ([BLOCK + 1], []), ([10, BLOCK - 5, BLOCK + 7], [3])],
)
def test_initial_values_do_not_depend_on_how_a_table_is_cut(rows, columns):
    whole, sharded = initialised()["big"], cut(rows, columns)
    initialised(big=sharded)
    for part, row, column in sharded.parts:
        assert torch.equal(part, whole[row : row + part.shape[0], column : column + part.shape[1]])


def test_a_rank_without_rows_of_a_table_is_no_trouble():
    initialised(big=Sharded(), small=Sharded((torch.empty(0, 4), 50, 0)))


def test_replicated_tables_are_filled_through_their_local_tensor():
    whole, local = initialised()["small"], blank()["small"]
    initialised(small=SimpleNamespace(to_local=lambda: local))
    assert torch.equal(local, whole)


def test_initial_values_are_uniform_within_their_bound():
    tables = initialised()
    assert not any(w.isnan().any() for w in tables.values())
    for name, bound in (("big", BIG.tables[0].init), ("small", 0.5)):  # by default, and as configured
        w = tables[name]
        assert w.abs().max() <= bound
        assert w.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not torch.equal(tables["big"][BLOCK:], tables["big"][:100])  # no block repeats another


def test_seeds_and_tables_differ():
    assert not torch.equal(initialised(seed=1)["big"], initialised()["big"])
    tables = initialised()
    assert not torch.equal(tables["big"][:50], tables["small"])


@pytest.mark.parametrize("root", ["model", "tables"])
def test_copies_for_several_tasks_start_equal(root):
    features = make_features()
    embeddings = Embeddings(features, "both", TASKS, device="cpu")
    for p in embeddings.parameters():
        torch.nn.init.constant_(p, torch.nan)
    # State dicts of the whole model and of its tables alone are both right.
    state = embeddings.state_dict(prefix="embeddings." if root == "model" else "")
    other = torch.full((20, 3), 7.0)
    initialise_tables({**state, "objective.head.user.weight": other}, features, 0)
    weights = weights_by_table(embeddings)
    for table in ("user", "item", "tag"):
        assert not weights[table].isnan().any()
        for task in TASKS:
            assert torch.equal(weights[f"{table}@{task}"], weights[table])
    assert (other == 7).all()
