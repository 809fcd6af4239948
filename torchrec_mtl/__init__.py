"""Config-driven multi-task recommenders on the TorchRec stack."""

__version__ = "0.1.0.dev0"
