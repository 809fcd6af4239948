"""The cross network of DCN (Wang et al., ADKDD 2017) and DCN-V2 (Wang et al., WWW 2021): products of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet, VectorCrossNet

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.features import Features, FeaturesSpec

# Shapes: B batch, D columns, r rank.


class DCN(Bottom):
    """Concatenate as ``concat`` does, and multiply the columns with each other, layer upon layer.

    With x_0 [B, D] the columns, ``*`` by element, and ``x_L`` the representation, layer l is, by form:

    * matrix: ``x_(l+1) = x_0 * (W x_l + b) + x_l``, W [D, D] (DCN-V2, Eq. 1)
    * low_rank: the same with ``W = U V``, U [D, r] and V [r, D] (DCN-V2, Eq. 2)
    * vector: ``x_(l+1) = x_0 (w^T x_l) + b + x_l`` (DCN, Eq. 3)

    So L layers give polynomials of degree L + 1. These are TorchRec's modules, in which weights start Xavier normal
    (truncated normal in the authors' layer for TensorFlow Recommenders) and biases 0. A head stacks its layers upon
    them, which is the stacked one of DCN-V2's two structures.

    Args:
        spec: features to read.
        tasks: names of the tasks; every one reads the same.
        config: the layers' number and form.
    """

    shares_histories = True

    class Config(PluginConfig):
        """Options of ``bottom: {type: dcn}``."""

        type: str = "dcn"
        layers: PositiveInt = 3
        """Number of cross layers, L."""
        form: Literal["matrix", "low_rank", "vector"] = "low_rank"
        """matrix and low_rank: DCN-V2's; vector: DCN's. Of D columns, a layer has D^2, 2 D rank, or D weights."""
        rank: PositiveInt = 32
        """low_rank: r. Less work than a matrix's below D / 2; D / 4 is as accurate, its authors say."""
        pooling: Literal["mean", "sum"] = "mean"
        """How a sequence becomes one vector."""

        def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
            """Only the form of low rank has one."""
            if self.form == "low_rank" or self.rank == type(self).model_fields["rank"].default:
                return []
            return [f"rank: without effect with form: {self.form}; remove it, or set form: low_rank"]

    def __init__(self, spec: FeaturesSpec, tasks: tuple[str, ...], config: Config) -> None:
        """See the class."""
        super().__init__(spec, tasks, config)
        self.concat = Concat(spec, tasks, Concat.Config(pooling=config.pooling))
        self.out_features = self.concat.out_features
        self.cross = _cross(self.out_features, config)

    def forward(self, features: Features) -> Representation:
        """Return ``shared`` [B, D] with D the sum of all widths."""
        crossed: Tensor = self.cross(self.concat(features).shared)
        return Representation(shared=crossed, features=features)


def _cross(width: int, config: DCN.Config) -> nn.Module:
    """Return the layers for D = ``width``."""
    if config.form == "low_rank":
        return LowRankCrossNet(width, config.layers, config.rank)
    return (CrossNet if config.form == "matrix" else VectorCrossNet)(width, config.layers)
