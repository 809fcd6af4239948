"""What a bottom hands a head."""

import torch

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.features import Features, FeaturesSpec

SHARED = torch.randn(4, 3)


def test_tasks_read_the_shared_representation_where_there_is_no_other():
    r = Representation(SHARED)
    assert r.of_task(1) is SHARED
    assert r.by_task() is SHARED


def test_tasks_read_their_own_representation():
    views = (SHARED + 1, SHARED + 2)
    r = Representation(SHARED, views)
    assert r.of_task(1) is views[1]
    assert torch.equal(r.by_task(), torch.stack(views))


def test_one_tensor_holds_the_representations_of_all_tasks_without_a_copy():
    views = torch.stack([SHARED + 1, SHARED + 2])
    r = Representation(SHARED, views)
    assert torch.equal(r.of_task(1), views[1])
    assert r.of_task(1).data_ptr() == views[1].data_ptr()
    assert r.by_task() is views


def test_validity_comes_from_the_features():
    assert Representation(SHARED).valid is None
    valid = torch.tensor([1.0, 1, 1, 0])
    features = Features({}, {}, torch.zeros(4, 0), FeaturesSpec((), (), ()), valid=valid)
    assert Representation(SHARED, features=features).valid is valid
