"""HTLNet inside a plain `nn.Module`: any model, any loop, any number of processes; here under DistributedDataParallel.

    python examples/embed_in_module.py
    torchx run dist.ddp -j 1x2 --script examples/embed_in_module.py -- --epochs 2

Nothing is sharded, and there is no train pipeline: the tables are ordinary parameters, the loop is `backward()` and
`step()`. What `MultiTaskArch` puts together in `embed_in_dlrm.py` is spelled out here: the head, a loss a task, the
hook of the gradient rule. With `exact="rows"` the rule sees the gradients of the tables' rows, as the paper writes it.
The rows of CDNOW are read as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.datasets.utils import Batch

from torchrec_mtl import GradientHook, HTLNet, HTLNetRule, Representation

if TYPE_CHECKING:
    from examples import embed_in_dlrm as dlrm
else:  # in a script, its own folder is on the path
    import embed_in_dlrm as dlrm

TASKS = dlrm.LABELS

# Shapes: B rows, D0 dense columns, K tasks.


class Model(nn.Module):
    """Tables and dense columns side by side, and a head on them."""

    def __init__(self) -> None:
        """Make everything, tables included."""
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=name, embedding_dim=8, num_embeddings=rows, feature_names=[name])
            for name, rows in dlrm.SPARSE.items()
        ]
        self.tables = EmbeddingBagCollection(tables=tables)
        self.norm = nn.LayerNorm(len(dlrm.DENSE))
        self.head = HTLNet(8 * len(tables) + len(dlrm.DENSE), TASKS)
        self.hook = GradientHook(HTLNetRule.Config(core="spend", exact="rows"), TASKS, tables=tables)

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the loss, and the losses [K], logits [B, K], and labels [B, K]."""
        pooled = self.tables(batch.sparse_features)
        # By key: once tables are sharded, the order of `pooled.values()` is the sharding plan's.
        x = torch.cat([*(pooled[name] for name in dlrm.SPARSE), self.norm(batch.dense_features)], dim=1)
        z = self.head(Representation(x)).logits
        losses = [binary_cross_entropy_with_logits(z[task], batch.labels[:, k]) for k, task in enumerate(TASKS[:2])]
        losses.append(mse_loss(z["spend"], batch.labels[:, 2].log1p()))
        loss = self.hook(torch.stack(losses), pooled, batch.sparse_features).sum()
        return loss, (torch.stack(losses).detach(), torch.stack([z[t].detach() for t in TASKS], dim=1), batch.labels)


def fit(
    model: DistributedDataParallel, device: torch.device, rows: Batch, batch_size: int, epochs: int
) -> list[Tensor]:
    """Train; return the losses of each step."""
    model.train()  # type: ignore[no-untyped-call]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    steps, shown = epochs * (len(rows.labels) // batch_size), []
    data = (batch for epoch in range(epochs) for batch in dlrm.batches(rows, batch_size, seed=epoch))
    for step, batch in enumerate(data):
        model.module.head.set_progress(step / steps, step)
        loss, (losses, _, _) = model(batch.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown.append(losses)
        if step % 50 == 0:
            dlrm.say(f"step {step}/{steps}: loss {' '.join(f'{x:.4f}' for x in losses.tolist())}")
    return shown


def main() -> None:
    """Train, and say how well the scores rank the test rows."""
    args = dlrm.arguments(__doc__)
    device = dlrm.join()
    torch.manual_seed(0)
    # Where one task comes before another, attention over it has nothing to choose: some of its weights get no gradient.
    model = DistributedDataParallel(Model().to(device), static_graph=True)
    torch.manual_seed(dist.get_rank())  # labels that HTLNet samples are of a rank's own rows
    fit(model, device, dlrm.read(args.data, "train"), args.batch_size, args.epochs)
    dlrm.report(*dlrm.predict(model, device, dlrm.read(args.data, "test"), args.batch_size))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
