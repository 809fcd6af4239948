"""Single-task models side by side equal models apart, and share nothing."""

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.embeddings import Embeddings, FeatureReader
from torchrec_mtl.heads.single_task import SingleTask

TASKS = ("click", "buy")
B, D = 6, 5


def test_logits_equal_towers_written_out():
    torch.manual_seed(0)
    head = SingleTask(D, {"click": 1, "buy": 2}, SingleTask.Config(tower=(4, 3)))
    views = tuple(torch.randn(B, D) for _ in TASKS)
    found = head(Representation(views[0], views)).logits
    for k, x in enumerate(views):
        for m in head.towers.linears:
            x = torch.relu(x @ m.weight[k] + m.bias[k])
        expected = x @ head.towers.last.weight[k] + head.towers.last.bias[k]
        torch.testing.assert_close(found[TASKS[k]].view(B, -1), expected[:, : k + 1])


def test_a_loss_trains_the_tables_and_the_tower_of_its_task_only():
    features = FeaturesConfig.model_validate(
        {
            "tables": [{"name": "user", "rows": 9, "dim": 2}, {"name": "item", "rows": 9, "dim": 2}],
            "sparse": [{"name": "user_id", "table": "user"}, {"name": "item_id", "table": "item"}],
            "sequences": [{"name": "seen", "table": "item", "max_length": 4}],
        }
    )
    torch.manual_seed(0)
    embeddings = Embeddings(features, SingleTask.tables, TASKS, device="cpu")
    reader = FeatureReader(features, SingleTask.tables, TASKS)
    bottoms = [Concat(reader.spec.select(task=t), (t,), Concat.Config()) for t in TASKS]
    head = SingleTask(bottoms[0].out_features, TASKS, SingleTask.Config(tower=(8,)))
    ids = torch.arange(2 * B) % 9
    batch = Batch(
        dense=torch.zeros(B, 0),
        sparse=KeyedJaggedTensor(["user_id"], ids[:B], lengths=torch.ones(B, dtype=torch.int64)),
        sequences=KeyedJaggedTensor(["item_id", "seen"], ids, lengths=torch.ones(2 * B, dtype=torch.int64)),
        labels=torch.zeros(B, 2),
        weights=torch.ones(B, 2),
        valid=torch.ones(B),
        rows=torch.arange(B),
        ids={},
        step=0,
        global_size=B,
    )
    for k, task in enumerate(TASKS):
        embeddings.zero_grad()
        head.zero_grad()
        embedded = reader.read(*embeddings(batch))
        assert embedded.shared == ()
        everything = reader.features(embedded, batch, seed=0)
        views = tuple(b(everything.select(task=t)).shared for b, t in zip(bottoms, TASKS))
        head(Representation(views[0], views)).logits[task].square().sum().backward()
        trained = {
            name.split(".")[-2]
            for name, p in embeddings.named_parameters()
            if p.grad is not None and (p.grad != 0).any()
        }
        assert trained == {f"user@{task}", f"item@{task}"}
        reached = head.towers.last.weight.grad.flatten(1).abs().sum(1) > 0
        assert reached.tolist() == [j == k for j in range(2)]
