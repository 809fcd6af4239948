"""What ``train.device: auto`` means."""

from __future__ import annotations

from torchrec_mtl.doctor import installed_versions


def has_cuda() -> bool:
    """Return whether torch sees CUDA and FBGEMM is no CPU build (pip's torch may be a CUDA build alone)."""
    import torch  # slow; the config is checked without it where it can be

    return torch.cuda.is_available() and "fbgemm-gpu-cpu" not in installed_versions()
