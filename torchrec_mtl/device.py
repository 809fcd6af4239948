"""What ``train.device: auto`` means."""

from __future__ import annotations

from torchrec_mtl.doctor import installed_versions

# What a fork server must be started with. Importing FBGEMM asks whether there is a GPU. A process that has asked CUDA
# itself can fork none that uses it, and torch asks it on the CPU too; NVML may be asked.
FORKABLE = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def has_cuda() -> bool:
    """Return whether torch sees CUDA and FBGEMM is no CPU build (pip's torch may be a CUDA build alone)."""
    import torch  # slow; the config is checked without it where it can be

    return torch.cuda.is_available() and "fbgemm-gpu-cpu" not in installed_versions()
