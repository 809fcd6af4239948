"""What DTRN cannot be built from, and options that would do nothing, are refused in words that help."""

import re
from dataclasses import replace

import pytest
import torch

from tests.unit.bottoms.sequences import TASKS, WIDTH, features_of, sequence, spec_of
from torchrec_mtl.bottoms.dtrn import DTRN
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.features import FieldSpec

FIELDS, SEQUENCES, TARGETS = {"item_id": 8, "user_id": 4}, {"seen": 8, "liked": 8}, {"seen": "item_id"}


def problems(options, fields=FIELDS, sequences=SEQUENCES, targets=TARGETS):
    return DTRN.Config(**options).feature_problems(fields, sequences, targets)


@pytest.mark.parametrize(
    ("options", "idle", "why"),
    [
        ({"refinement": "none", "granularity": "bit"}, "granularity", "refinement: none"),
        ({"refinement": "none", "squeeze": "flat"}, "squeeze", "refinement: none"),
        ({"refinement": "none", "reduction": 2}, "reduction", "refinement: none"),
        ({"interest": "plain", "condition": "task"}, "condition", "interest: plain"),
        ({"interest": "plain", "task_dim": 8}, "task_dim", "interest: plain"),
        ({"interest": "plain", "behavior_dim": 8}, "behavior_dim", "interest: plain"),
        ({"interest": "plain", "hyper": (8,)}, "hyper", "interest: plain"),
        ({"interest": "pooled", "hyper": (8,)}, "hyper", "interest: pooled"),
        ({"interest": "pooled", "pool": "mean"}, "pool", "interest: pooled"),
        ({"interest": "pooled", "heads": 4}, "heads", "interest: pooled"),
        ({"interest": "pooled", "layers": 2}, "layers", "interest: pooled"),
        ({"interest": "pooled", "ffn": 2}, "ffn", "interest: pooled"),
        ({"interest": "pooled", "positions": False}, "positions", "interest: pooled"),
        ({"condition": "task", "behavior_dim": 8}, "behavior_dim", "condition: task"),
        ({"condition": "behavior", "task_dim": 8}, "task_dim", "condition: behavior"),
    ],
    ids=str,
)
def test_an_option_without_effect_is_refused(options, idle, why):
    assert problems(options) == [f"{idle}: without effect with {why}; remove it"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"refinement": "none"},
        {"refinement": "shared", "granularity": "bit", "squeeze": "flat", "reduction": 2},
        {"interest": "plain", "heads": 4, "layers": 2, "ffn": 2, "positions": False, "pool": "mean"},
        {"interest": "pooled", "refinement": "none"},
        {"condition": "task", "task_dim": 8, "hyper": (8, 8)},
        {"condition": "behavior", "behavior_dim": 8},
        {"heads": 8},
        {"heads": 1},
    ],
    ids=str,
)
def test_what_has_an_effect_is_taken(options):
    assert problems(options) == []


def test_every_option_has_an_effect_or_is_refused():
    """Whatever is set beside interest and refinement, all of it is refused where both are off."""
    other = {
        "condition": "task",
        "pool": "mean",
        "heads": 4,
        "layers": 2,
        "ffn": 2,
        "positions": False,
        "task_dim": 8,
        "behavior_dim": 8,
        "hyper": (8,),
        "granularity": "bit",
        "squeeze": "flat",
        "reduction": 2,
    }
    assert set(other) == set(DTRN.Config.model_fields) - {"type", "interest", "refinement"}
    off = {"interest": "pooled", "refinement": "none"}
    assert problems(off) == []
    for name, value in other.items():
        (found,) = problems(off | {name: value})
        assert found.startswith(f"{name}: without effect")


@pytest.mark.parametrize(
    ("options", "features", "message"),
    [
        ({}, {"sequences": {}, "targets": {}}, "interest: dtrn reads behaviour sequences, and there are none; list"),
        ({"heads": 3}, {}, "heads: 3 heads do not divide the sequences' dim 8; take a divisor"),
        (
            {},
            {"targets": {}},
            "pool: attention needs the item that is scored, and no sequence names one; set "
            "features.sequences.0.target to the sparse feature of the item",
        ),
        (
            {},
            {"targets": {"seen": "item_id", "liked": "user_id"}},
            "pool: sequence 'liked' has dim 8 and its target 'user_id' 4, which cannot be compared; let both read",
        ),
    ],
)
def test_features_that_do_not_fit_are_refused(options, features, message):
    (found,) = problems(options, **features)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({"pool": "mean"}, {"targets": {}}),
        ({"pool": "mean"}, {"targets": {"seen": "user_id"}}),
        ({"interest": "pooled"}, {"sequences": {}, "targets": {}}),
        ({"interest": "pooled"}, {"sequences": {"seen": 7, "liked": 5}, "targets": {}}),
    ],
    ids=str,
)
def test_what_is_not_read_need_not_fit(options, features):
    assert problems(options, **features) == []


def test_a_table_that_is_not_there_is_left_to_other_checks():
    assert problems({}, fields={"item_id": None}, sequences={"seen": None}) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of(sequence("seen", width=6)), "bottom: pool: sequence 'seen' has dim 6 and its target 'item_id' 4"),
        (spec_of(sequence("seen", target=None)), "bottom: pool: attention needs the item that is scored"),
    ],
    ids=["target", "no target"],
)
def test_the_constructor_refuses_them_too(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DTRN(spec, TASKS, DTRN.Config())


def of_two_widths():
    """Each sequence is as wide as its own target, and the two differ."""
    spec = spec_of(sequence("seen"), sequence("liked", target="other", width=6))
    return replace(spec, fields=(*spec.fields, FieldSpec("other", 6, "item", "other")))


@pytest.mark.parametrize("options", [{}, {"pool": "mean"}, {"interest": "plain"}], ids=str)
def test_sequences_of_several_widths_are_refused(options):
    with pytest.raises(ValueError, match="dim"):
        DTRN(of_two_widths(), TASKS, DTRN.Config(**options))


def test_the_mean_of_sequences_does_not_need_one_width():
    spec = of_two_widths()
    found = DTRN(spec, TASKS, DTRN.Config(interest="pooled"))(
        features_of(spec, {"seen": [1, 0], "liked": [0, 2]}, torch.float32)
    )
    assert found.shared.shape == (2, 3 + WIDTH + 6 + WIDTH + 6 + 2)


def config_of(bottom, sequences=None):
    raw = make_config("unused.parquet", run_dir="unused")
    if sequences is not None:
        raw["features"]["sequences"] = sequences
    return parse(raw | {"bottom": {"type": "dtrn", **bottom}})


@pytest.mark.parametrize(
    ("bottom", "message"),
    [
        ({"heads": 3}, "bottom.heads: 3 heads do not divide the sequences' dim 8; take a divisor"),
        ({"refinement": "none", "squeeze": "flat"}, "bottom.squeeze: without effect with refinement: none; remove it"),
        ({"head": 4}, "bottom.head: .*Did you mean 'heads'"),
        ({"hyper": []}, "bottom.hyper: "),
        ({"layers": 0}, "bottom.layers: "),
        ({"refinement": "all"}, "bottom.refinement: "),
    ],
    ids=str,
)
def test_mistakes_in_a_config_are_named(bottom, message):
    with pytest.raises(ValueError, match="bottom") as caught:
        config_of(bottom)
    assert re.search(message, str(caught.value)), caught.value


def test_a_config_without_sequences_is_refused():
    with pytest.raises(ValueError, match=r"bottom\.interest: dtrn reads behaviour sequences, and there are none"):
        config_of({}, [])


def test_a_config_without_a_target_is_refused():
    sequences = [{"name": "watched", "table": "item", "max_length": 10}]
    with pytest.raises(ValueError, match=r"bottom\.pool: attention needs the item"):
        config_of({}, sequences)
    config_of({"pool": "mean"}, sequences)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({"layers": 3}, {"interest.transformer.layers.2.qkv.weight": (12, 4), "interest.norms.mlp.2.bias": (48,)}),
        ({"ffn": 3}, {"interest.transformer.layers.0.first.weight": (12, 4)}),
        ({"task_dim": 5}, {"interest.norms.tasks": (3, 5)}),
        ({"behavior_dim": 5}, {"interest.norms.behaviors": (3, 5)}),
        ({"hyper": (7, 9)}, {"interest.norms.mlp.0.bias": (7,), "interest.norms.mlp.2.weight": (9, 7)}),
        ({"positions": True}, {"interest.positions": (9, 4)}),
        ({"squeeze": "flat", "reduction": 3}, {"refinement.gate.first.weight": (3, 21, 7)}),
        ({"granularity": "bit"}, {"refinement.gate.second.bias": (3, 1, 21)}),
        ({"refinement": "shared", "reduction": 7}, {"refinement.gate.first.weight": (1, 7, 1)}),
    ],
    ids=str,
)
def test_options_decide_the_weights(options, shapes):
    weights = dict(DTRN(spec_of(), TASKS, DTRN.Config(**options)).named_parameters())
    assert {name: tuple(weights[name].shape) for name in shapes} == shapes


def test_heads_are_those_of_the_attention():
    bottom = DTRN(spec_of(), TASKS, DTRN.Config(heads=4, layers=2))
    assert [layer.num_heads for layer in bottom.interest.transformer.layers] == [4, 4]


@pytest.mark.parametrize(("pool", "moved"), [("target", [True, True, False]), ("mean", [False] * 3)])
def test_the_target_is_seen_by_the_sequences_that_name_it_unless_all_are_averaged(pool, moved):
    spec = spec_of()
    bottom, features = DTRN(spec, TASKS, DTRN.Config(pool=pool)), features_of(spec, dtype=torch.float32)
    other = replace(features, fields={**features.fields, "item_id": -features.fields["item_id"]})
    interests = [bottom.interest(x).unflatten(-1, (3, WIDTH)) for x in (features, other)]
    assert (interests[0] != interests[1]).any(-1).any(0).any(0).tolist() == moved


def test_it_starts_from_torchs_seed_and_from_a_state_dict():
    def build(seed):
        torch.manual_seed(seed)
        return DTRN(spec_of(), TASKS, DTRN.Config())

    one, same, other = build(0), build(0), build(1)
    features = features_of(spec_of(), dtype=torch.float32)
    assert torch.equal(one(features).shared, same(features).shared)
    assert not torch.equal(one(features).shared, other(features).shared)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(features).shared, other(features).shared)


def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        assert all(p.is_meta for p in DTRN(spec_of(), TASKS, DTRN.Config()).parameters())
