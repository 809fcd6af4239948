"""DTRN as a program: exported once, for any number of events in any histories."""

import torch
from torch import nn

from tests.unit.bottoms.sequences import LENGTHS, ONE_EMPTY, TASKS, features_of, randomised, spec_of
from torchrec_mtl.bottoms.dtrn import DTRN
from torchrec_mtl.features import Features, Jagged


class Program(nn.Module):
    """The bottom on plain tensors."""

    def __init__(self, bottom, spec):
        super().__init__()
        self.bottom, self.spec = bottom, spec

    def forward(self, fields, values, lengths, dense):
        sequences = {name: Jagged(values[name], lengths[name]) for name in values}
        return self.bottom(Features(fields, sequences, dense, self.spec)).per_task


def inputs(spec, lengths):
    features = features_of(spec, lengths, torch.float32)
    values = {name: s.values.detach() for name, s in features.sequences.items()}
    counts = {name: s.lengths for name, s in features.sequences.items()}
    return {n: x.detach() for n, x in features.fields.items()}, values, counts, features.dense.detach()


def test_a_program_serves_other_histories_than_it_was_made_with():
    spec = spec_of()
    program = Program(randomised(DTRN(spec, TASKS, DTRN.Config()).eval(), torch.float32), spec)
    made_with = inputs(spec, LENGTHS)
    events = {name: {0: torch.export.Dim(name, min=1, max=1000)} for name in LENGTHS}
    dynamic = (dict.fromkeys(made_with[0]), events, dict.fromkeys(LENGTHS), None)
    exported = torch.export.export(program, made_with, dynamic_shapes=dynamic).module()
    for lengths in (LENGTHS, ONE_EMPTY | {"clicked": [0, 0, 1, 0, 0, 1]}):
        given = inputs(spec, lengths)
        torch.testing.assert_close(exported(*given), program(*given), rtol=1e-5, atol=1e-5)
