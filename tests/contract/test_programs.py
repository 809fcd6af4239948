"""Every head, and every bottom, as an exported program: what it says is what the model says, for any number of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.heads.base import HeadOutput
from torchrec_mtl.heads.ncs4cvr import NCS4CVR
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.model import MultiTaskModel
from torchrec_mtl.registry import BUILT_IN
from torchrec_mtl.testing import check_export

BINARY_ONLY = {"esmm", "escm2", "aitm", "dbmtl", "dmmp"}
BOTTOMS: dict[str, dict[str, Any]] = {name: {"type": name} for name in BUILT_IN["bottom"]}
BOTTOMS["epnet"]["domain"] = ["user_id"]
COMBINATIONS = [(head, "concat") for head in BUILT_IN["head"]]
COMBINATIONS += [("shared_bottom", bottom) for bottom in BOTTOMS if bottom != "concat"]
COMBINATIONS += [("ncs4cvr", "dtrn")]


def config_of(head: str, bottom: str = "concat") -> RunConfig:
    raw = make_config("unused.parquet", run_dir="unused", space=False)
    raw["data"]["eval"] = raw["data"]["train"]
    raw |= {"head": {"type": head}, "bottom": BOTTOMS[bottom]}
    if head in BINARY_ONLY:
        raw["tasks"] = [task for task in raw["tasks"] if task["kind"] == "binary"]
    return parse(raw)


def prune(model: MultiTaskModel) -> None:
    """Give each task of NCS4CVR a mask of its own."""
    head = model.objective.head
    if isinstance(head, NCS4CVR):
        g = torch.Generator().manual_seed(1)
        for k in range(head.num_tasks):
            head.rounds.begin((k,), 1, torch.rand(head.layers.num_connections, generator=g) < 0.2)
            head.rounds.used[k] = 1


@pytest.mark.parametrize(("head", "bottom"), COMBINATIONS, ids=["-".join(c) for c in COMBINATIONS])
def test_a_program_says_what_the_model_says(head: str, bottom: str) -> None:
    check_export(config_of(head, bottom), prune)


class Another(SharedBottom):
    """Exported as something that says otherwise."""

    def for_inference(self) -> SharedBottom:
        made = super().for_inference()
        assert isinstance(made, SharedBottom)
        return Shifted(made.in_features, made.outputs, made.config)


class Shifted(SharedBottom):
    """With parameters of its own."""


class OfRows(SharedBottom):
    """Knows how many rows there are, as a Python number."""

    def forward(self, representation: Representation) -> HeadOutput:
        out = super().forward(representation)
        return HeadOutput({task: z * int(z.shape[0]) for task, z in out.logits.items()})


class OfValues(SharedBottom):
    """Looks at the values."""

    def forward(self, representation: Representation) -> HeadOutput:
        out = super().forward(representation)
        return out if float(representation.shared.sum()) > 0 else HeadOutput({t: -z for t, z in out.logits.items()})


class Deaf(SharedBottom):
    """Reads nothing."""

    def forward(self, representation: Representation) -> HeadOutput:
        out = super().forward(representation)
        return HeadOutput({task: torch.zeros_like(z) for task, z in out.logits.items()})


@pytest.mark.parametrize(
    ("head", "message"),
    [(Another, "differs from the model by"), (Deaf, "says the same of all rows"), (OfValues, "data-dependent")],
)
def test_what_cannot_be_exported_is_told(head: type[SharedBottom], message: str) -> None:
    with pytest.raises(Exception, match=message):
        check_export(config_of(f"{__name__}:{head.__name__}"))


def test_the_number_of_rows_stays_a_number() -> None:
    with pytest.raises(Exception, match=r"specialized|differs from the model|Constraints violated"):
        check_export(config_of(f"{__name__}:OfRows"))
