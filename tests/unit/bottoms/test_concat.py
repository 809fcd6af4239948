"""The plain bottom puts everything side by side, in the order of the config."""

import pytest
import torch

from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.features import DenseSpec, Features, FeaturesSpec, FieldSpec, Jagged

SPEC = FeaturesSpec(
    fields=(FieldSpec("user_id", 2, "user", "user"), FieldSpec("item_id", 3, "item", "item")),
    sequences=(FieldSpec("seen", 3, "user", "item", behavior="seen", max_length=4),),
    dense=(DenseSpec("age", "user"),),
)


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_everything_stands_side_by_side(pooling):
    torch.manual_seed(0)
    user, item, age, values = torch.randn(3, 2), torch.randn(3, 3), torch.randn(3, 1), torch.randn(4, 3)
    features = Features(
        fields={"item_id": item, "user_id": user},  # the spec gives the order
        sequences={"seen": Jagged(values, torch.tensor([3, 0, 1]))},
        dense=age,
        spec=SPEC,
    )
    bottom = Concat(SPEC, ("click",), Concat.Config(pooling=pooling))
    first = values[:3].sum(0) / (3 if pooling == "mean" else 1)
    seen = torch.stack([first, torch.zeros(3), values[3]])
    found = bottom(features)
    torch.testing.assert_close(found.shared, torch.cat([user, item, seen, age], 1))
    assert found.per_task is None
    assert found.features is features
    assert bottom.out_features == found.shared.shape[1] == 9


def test_dense_columns_alone_are_a_representation():
    spec = FeaturesSpec((), (), SPEC.dense)
    bottom = Concat(spec, ("click",), Concat.Config())
    age = torch.randn(3, 1)
    assert torch.equal(bottom(Features({}, {}, age, spec)).shared, age)
