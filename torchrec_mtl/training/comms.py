"""What ranks exchange of embeddings and their gradients, in 16 bits where a run says so."""

from __future__ import annotations

from typing import cast

import torch
from fbgemm_gpu.quantize_comm import QuantizationContext, QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import QuantizedCommCodec as Codec
from torchrec.distributed.types import QuantizedCommCodecs

from torchrec_mtl.config.run import RunConfig

Codecs = dict[str, QuantizedCommCodecs]


def comm_codecs(config: RunConfig, device: torch.device, ranks: int) -> Codecs | None:
    """Return TorchRec's codecs of a run's ``train.comms``; None where fp32 is exchanged, or nothing.

    Args:
        config: the run.
        device: of the ranks.
        ranks: number of them.
    """
    comms = config.train.comms
    if comms == "fp32" or ranks == 1:  # TorchRec would round what one rank keeps to itself
        return None
    kind = CommType[comms.upper()]
    registry = get_qcomm_codecs_registry(QCommsConfig(kind, kind), device=device)
    assert registry is not None, "of fp32 alone there are none"
    for codecs in registry.values() if comms == "fp16" else ():
        # A loss is a mean over the global batch, and gradients of a row are as many times smaller.
        scaled = _Scaled(2.0 ** (config.data.batch_size.bit_length() - 1))
        codecs.backward = cast("Codec[QuantizationContext]", scaled)
    return registry


class _Scaled(QuantizedCommCodec):
    """Gradients in fp16, multiplied before and divided after, or they would end below what it can hold (6e-8).

    FBGEMM has a scale of its own, which divides while the numbers are still fp16: what it saved is lost there.

    Args:
        scale: a power of two, which changes no digit; what is larger than 65,504 / scale is clamped.
    """

    def __init__(self, scale: float) -> None:
        super().__init__(SparseType.FP16, is_fwd=False)
        self._scale = scale

    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        return super().encode(input_tensor * self._scale, ctx)

    def decode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        return super().decode(input_tensor, ctx) / self._scale
