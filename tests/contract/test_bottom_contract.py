"""Every built-in bottom keeps the promises of a bottom, and the check refuses bottoms that break one."""

import dataclasses

import pytest
import torch
from torch import nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.heads.layers import MLP
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.testing import check_bottom

OPTIONS = {"epnet": {"domain": ["tags"]}}
VARIANTS = {
    "dtrn": [{"interest": "pooled", "squeeze": "flat"}, {"layers": 2, "granularity": "bit"}],
    "dcn": [{"form": "matrix"}],
}


@pytest.mark.parametrize("name", BUILT_IN["bottom"])
def test_built_in_bottom_keeps_its_promises(name):
    bottom_class = resolve("bottom", name)
    for options in ({}, *VARIANTS.get(name, [])):
        check_bottom(bottom_class, bottom_class.Config(type=name, **OPTIONS.get(name, {}), **options))


class Layered(Concat):
    """Sound, with a norm over the batch."""

    def __init__(self, spec, tasks, config):
        super().__init__(spec, tasks, config)
        self.layer = MLP(self.out_features, [6], norm="batch")
        self.out_features = 6

    def forward(self, features):
        shared = self.layer(super().forward(features).shared, features.valid)
        return Representation(shared=shared, features=features)


class ForgetsPadding(Layered):
    def forward(self, features):
        return Representation(shared=self.layer(Concat.forward(self, features).shared), features=features)


class KeepsFeatures(Concat):
    def forward(self, features):
        return dataclasses.replace(super().forward(features), features=None)


class WrongWidth(Concat):
    def __init__(self, spec, tasks, config):
        super().__init__(spec, tasks, config)
        self.out_features += 1


class SaysPerTask(Concat):
    per_task = True


class TooFewTasks(Concat):
    per_task = True

    def forward(self, features):
        out = super().forward(features)
        return dataclasses.replace(out, per_task=(out.shared,))


class Centred(Concat):
    def forward(self, features):
        out = super().forward(features)
        return dataclasses.replace(out, shared=out.shared - out.shared.mean(0))


class Drops(Concat):
    def forward(self, features):
        out = super().forward(features)
        return dataclasses.replace(out, shared=nn.functional.dropout(out.shared, training=self.training))


class NoisyWhenEvaluating(Concat):
    def forward(self, features):
        out = super().forward(features)
        return dataclasses.replace(out, shared=out.shared + features.noise.uniform("x").unsqueeze(1))


class DividesByLength(Concat):
    def forward(self, features):
        out = super().forward(features)
        lengths = features.sequences["watched"].lengths.unsqueeze(1)
        return dataclasses.replace(out, shared=out.shared / lengths)


class Detached(Concat):
    def forward(self, features):
        out = super().forward(features)
        return dataclasses.replace(out, shared=out.shared.detach().requires_grad_())


class OwnSeed(Concat):
    made = 0

    def __init__(self, spec, tasks, config):
        super().__init__(spec, tasks, config)
        OwnSeed.made += 1
        self.weight = nn.Parameter(torch.full((1,), float(OwnSeed.made)))


class Counts(Concat):
    def __init__(self, spec, tasks, config):
        super().__init__(spec, tasks, config)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, features):
        self.seen += 1
        return super().forward(features)


class HidesState(Concat):
    def __init__(self, spec, tasks, config):
        super().__init__(spec, tasks, config)
        self.scale = float(torch.rand(()))

    def forward(self, features):
        out = super().forward(features)
        return dataclasses.replace(out, shared=out.shared * self.scale)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ForgetsPadding, "lets padding rows .* change other rows in training; hand `features.valid` to the norms"),
        (KeepsFeatures, "does not hand its features on"),
        (WrongWidth, r"expected \[B, D\]"),
        (SaysPerTask, "says per_task = True and returns one for all"),
        (TooFewTasks, "returns 1 representations for 2 tasks"),
        (Centred, "lets a row in evaluation depend on the other rows"),
        (Drops, "draws from torch's generator in training"),
        (NoisyWhenEvaluating, "uses `features.noise` in evaluation"),
        (DividesByLength, "is not finite for rows without history|is not finite for"),
        (Detached, "sends no gradient to any feature"),
        (OwnSeed, "is built with other parameters from the same torch seed"),
        (Counts, "changes its buffers in evaluation"),
        (HidesState, "after its state dict is loaded"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_promise_is_named(broken, message):
    check_bottom(Layered)
    with pytest.raises(AssertionError, match=message):
        check_bottom(broken)


def test_a_class_that_no_config_can_name_is_refused():
    class Inside(Concat):
        pass

    with pytest.raises(AssertionError, match="Inside cannot be named in a config"):
        check_bottom(Inside)
