"""The operations that a program may name: they return new tensors, and write to none."""

from __future__ import annotations

import re

import torch

_OF_ATEN = frozenset(
    """
    abs acos add addbmm addcdiv addcmul addmm alias all amax amin aminmax any arange argmax argmin argsort asin atan
    atan2 avg_pool1d baddbmm batch_norm bilinear bitwise_and bitwise_not bitwise_or bitwise_xor bmm bucketize cat
    ceil celu chunk clamp clamp_max clamp_min clone constant_pad_nd conv1d copy cos cosh cosine_similarity
    count_nonzero cummax cumprod cumsum detach diag diagonal digamma div dot dropout einsum elu embedding
    embedding_bag eq erf erfc erfinv exp expand expand_as expm1 eye fill flatten flip floor floor_divide fmod frac
    full full_like gather ge gelu glu group_norm gt hardsigmoid hardswish hardtanh heaviside hypot index index_add
    index_select isfinite isinf isnan layer_norm le leaky_relu lerp lgamma lift_fresh_copy linalg_norm
    linalg_vector_norm linear log log10 log1p log2 log_sigmoid log_softmax logaddexp logaddexp2 logical_and
    logical_not logical_or logical_xor logit logsumexp lt masked_fill matmul max max_pool1d maximum mean min minimum
    mish mm movedim mul mv nan_to_num narrow native_layer_norm ne neg new_full new_ones new_zeros norm one_hot ones
    ones_like outer permute pow prelu prod reciprocal relu remainder repeat repeat_interleave reshape roll round
    rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add select select_scatter selu sgn sigmoid
    sign signbit silu sin slice slice_scatter softmax softplus sort split split_with_sizes sqrt square squeeze stack
    std std_mean sub sum sym_numel sym_size t tan tanh tensordot threshold tile to topk transpose tril triu trunc
    unbind unflatten unfold unsqueeze var var_mean view where xlogy zeros zeros_like _assert_scalar
    _assert_tensor_metadata _embedding_bag_forward_only _log_softmax _native_batch_norm_legit_no_training
    _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy _unsafe_view __and__ __or__ __xor__
    sym_constrain_range sym_constrain_range_for_size
    """.split()  # noqa: SIM905  # 200 lines else
)
_OF_FBGEMM = frozenset({"FusedNBitRowwiseQuantizedSBHalfToFloat"})
_NUMBERS = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(max|min|int|float|not|ite|sum)|math\.(ceil|floor|trunc)"
)
_OPERATION = re.compile(r"torch\.ops\.(aten|fbgemm)\.(\w+)\.(\w+)")


def is_known(target: str) -> bool:
    """Return whether a node of a program may name this.

    Example:
        >>> is_known("torch.ops.aten.relu.default"), is_known("torch.ops.aten.relu_.default")
        (True, False)
    """
    if _NUMBERS.fullmatch(target):
        return True
    if (found := _OPERATION.fullmatch(target)) is None:
        return False
    namespace, name, overload = found.groups()
    if name not in {"aten": _OF_ATEN, "fbgemm": _OF_FBGEMM}[namespace]:
        return False
    if namespace == "fbgemm":
        return overload == "default"
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads():
        return False
    return not getattr(packet, overload)._schema.is_mutable
