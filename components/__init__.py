"""TorchX components; installed as ``torchrec_mtl.components``."""
