"""An NCS4CVR head under given masks, its networks written out, and a trainer that only ends phases."""

import torch
from torch import nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.ncs4cvr import NCS4CVR

B, D = 8, 6
TWO = ("click", "buy")
OUTPUTS = {"click": 1, "buy": 1, "watch": 3}


def made(outputs=TWO, in_features=D, seed=0, binary=None, shared=(5, 4), **options):
    torch.manual_seed(seed)
    head = NCS4CVR(in_features, outputs, NCS4CVR.Config(shared=shared, **options), binary=binary)
    for bias in (*head.layers.biases, head.last.bias):
        nn.init.normal_(bias)  # they start at 0, where a mistake would not show
    return head


def random_masks(head, density=0.5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(head.num_tasks, head.layers.num_connections, generator=generator) < density


def masked(head, masks):
    """Have the tasks use masks [K, N], as their first rounds'."""
    for k, mask in enumerate(masks):
        head.rounds.begin([k], 1, mask)
    return head


def split(head, mask):
    """[N] to one [H, I] a layer."""
    found, start = [], 0
    for weight in head.layers.weights:
        found.append(mask[start : start + weight.numel()].view_as(weight))
        start += weight.numel()
    return found


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def alone(head, mask, k, x):
    """Logits [B, P] of task k's network written out, for x [B, D]."""
    for weight, bias, m in zip(head.layers.weights, head.layers.biases, split(head, mask), strict=True):
        x = torch.relu(x @ (weight * m).T + bias)
    width = list(head.outputs.values())[k]
    return (x @ head.last.weight[k] + head.last.bias[k])[:, :width]


def inputs(tasks=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(B, D, generator=generator) for _ in range(tasks)) or None
    return Representation(torch.randn(B, D, generator=generator), views)


def set_distinct_weights(head, seed):
    """Give the layers weights of which no two are as large."""
    n = head.layers.num_connections
    values = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) + 1) / n
    signs = torch.rand(n, generator=torch.Generator().manual_seed(seed + 1)).sub(0.5).sign()
    with torch.no_grad():
        for weight, value in zip(head.layers.weights, split(head, values * signs), strict=True):
            weight.copy_(value)


def play(head, metrics, phases=None):
    """Go through phases as a trainer does, each with other weights; metrics are phase -> task -> metric -> value."""
    ends = {}
    for number, phase in enumerate(head.phases(1) if phases is None else phases):
        head.begin_phase(phase)
        head.activate(phase.tasks)
        set_distinct_weights(head, number)
        ends[phase.name] = head.end_phase(phase, metrics.get(phase.name, {}))
    return ends


def scores(task, metric, *values):
    return {f"{task}, round {r}": {task: {metric: value}} for r, value in enumerate(values)}
