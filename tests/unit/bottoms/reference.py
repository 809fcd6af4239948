"""DTRN written out: loops over tasks, sequences, and rows; each history is attended to alone, without a mask."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchrec_mtl.bottoms.conditions import HyperNetwork
from torchrec_mtl.features import GAP_BUCKETS, Features


def normalised(x: Tensor) -> Tensor:
    """[..., d] with mean 0 and variance 1."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def norms_of(norms: Any, k: int, j: int) -> list[tuple[Tensor, Tensor]]:
    """(gamma, beta) of each norm for task k and sequence j."""
    if not isinstance(norms, HyperNetwork):
        return [(norms.weight[i].flatten(), norms.bias[i].flatten()) for i in range(len(norms.weight))]
    known = [] if norms.tasks is None else [norms.tasks[k]]
    known += [] if norms.behaviors is None else [norms.behaviors[norms.kinds[j]]]
    x = torch.cat(known)
    *hidden, last = [m for m in norms.mlp if hasattr(m, "weight")]
    for m in hidden:
        x = torch.relu(m.weight @ x + m.bias)
    made = last.weight @ x + last.bias
    n, d = norms.num_norms, norms.width
    delta, beta = made[: n * d], made[n * d :]
    return [(1 + delta[i * d : (i + 1) * d], beta[i * d : (i + 1) * d]) for i in range(n)]


def attention(layer: Any, x: Tensor) -> Tensor:
    """[L, d], one head after the other."""
    d = x.shape[1]
    width = d // layer.num_heads
    q, k, v = (x @ layer.qkv.weight[i * d : (i + 1) * d].T + layer.qkv.bias[i * d : (i + 1) * d] for i in range(3))
    heads = []
    for h in range(layer.num_heads):
        of_head = slice(h * width, (h + 1) * width)
        weights = torch.softmax(q[:, of_head] @ k[:, of_head].T / math.sqrt(width), dim=1)
        heads.append(weights @ v[:, of_head])
    return torch.cat(heads, dim=1) @ layer.out.weight.T + layer.out.bias


def transformed(layers: Any, x: Tensor, norms: list[tuple[Tensor, Tensor]]) -> Tensor:
    """[L, d] through layers normalised after each half; norms are (gamma, beta)."""
    for i, layer in enumerate(layers):
        (gamma, beta), (gamma_2, beta_2) = norms[2 * i : 2 * i + 2]
        a = gamma * normalised(x + attention(layer, x)) + beta
        fed = torch.relu(a @ layer.first.weight.T + layer.first.bias) @ layer.second.weight.T + layer.second.bias
        x = gamma_2 * normalised(a + fed) + beta_2
    return x


def history(interest: Any, features: Features, j: int, b: int) -> Tensor:
    """[L, d]: the events of row b with what is added to them."""
    s = features.sequences[features.spec.sequences[j].name]
    start, length = int(s.lengths[:b].sum()), int(s.lengths[b])
    events = []
    for i in range(length):
        x = s.values[start + i]
        if interest.positions is not None:
            x = x + interest.positions[length - 1 - i]
        if interest.gaps is not None:
            x = x + interest.gaps[GAP_BUCKETS if s.gaps is None else int(s.gaps[start + i])]
        events.append(x)
    return torch.stack(events) if events else s.values[:0]


def interest_of(interest: Any, features: Features, k: int, j: int, b: int) -> Tensor:
    """s_{k,j} of a row, [d]."""
    x = history(interest, features, j, b)
    if not len(x):
        return x.sum(0)
    y = transformed(interest.transformer.layers, x, norms_of(interest.norms, k, j))
    target = interest.targets[j]
    if target is None:
        return y.mean(0)
    q = interest.query.weight @ normalised(features.fields[target][b])
    return torch.softmax(y @ q / math.sqrt(len(q)), dim=0) @ y


def interests(interest: Any, features: Features, num_tasks: int) -> Tensor:
    """[K, B, J d]."""
    sequences, rows = range(len(features.spec.sequences)), range(len(features.dense))
    return torch.stack(
        [
            torch.stack([torch.cat([interest_of(interest, features, k, j, b) for j in sequences]) for b in rows])
            for k in range(num_tasks)
        ]
    )


def refined(refinement: Any, parts: list[Tensor], k: int) -> Tensor:
    """o_k of a row [D], from its features; gates shared by all tasks are the first."""
    gate, mean = refinement.gate, refinement.squeeze == "mean"
    k = k if refinement.num_gates > 1 else 0
    u = torch.stack([z.mean() for z in parts]) if mean else torch.cat(parts)
    hidden = torch.relu(u @ gate.first.weight[k] + gate.first.bias[k, 0])
    a = 2 / (1 + torch.exp(-(hidden @ gate.second.weight[k] + gate.second.bias[k, 0])))
    if refinement.granularity == "bit":
        return torch.cat(parts) * a
    return torch.cat([a[f] * z for f, z in enumerate(parts)])


def pooled(features: Features, j: int, b: int) -> Tensor:
    """The mean of a row's events, [d]."""
    s = features.sequences[features.spec.sequences[j].name]
    start, length = int(s.lengths[:b].sum()), int(s.lengths[b])
    return s.values[start : start + length].sum(0) / max(length, 1)


def representations(bottom: Any, features: Features, num_tasks: int) -> Tensor:
    """o_k of all tasks and rows, [K, B, D]."""
    tasks = []
    for k in range(num_tasks):
        rows = []
        for b in range(len(features.dense)):
            parts = [features.fields[f.name][b] for f in features.spec.fields]
            for j in range(len(features.spec.sequences)):
                whole = bottom.interest is None
                parts.append(pooled(features, j, b) if whole else interest_of(bottom.interest, features, k, j, b))
            parts += [x.reshape(1) for x in features.dense[b]]
            rows.append(torch.cat(parts) if bottom.refinement is None else refined(bottom.refinement, parts, k))
        tasks.append(torch.stack(rows))
    return torch.stack(tasks)
