from torchrec_mtl.config.differences import differences

OLD = {"head": {"type": "htlnet", "tower": [8, 4]}, "train": {"epochs": 1, "seed": 0, "monitor": None}}


def test_equal_values_differ_in_nothing():
    assert differences(OLD, {**OLD}) == []


def test_every_value_that_differs_is_named_as_yaml_has_it():
    new = {"head": {"type": "mmoe", "tower": [8, 2]}, "train": {"epochs": 1, "seed": 0, "monitor": True}, "more": "x"}
    assert differences(OLD, new) == [
        "head.type: was 'htlnet', is 'mmoe'",
        "head.tower.1: was 4, is 2",
        "train.monitor: was null, is true",
        "more: was null, is 'x'",
    ]


def test_lists_of_another_length_are_told_whole():
    assert differences([1, 2], [1], "tower") == ["tower: was [1, 2], is [1]"]


def test_what_may_differ_is_not_told():
    assert differences(OLD, {**OLD, "train": 3}, may_differ=lambda path: path == "train") == []
