"""Scores and searches over HTTP: ``torchrec-mtl serve``. Needs ``pip install "torchrec_mtl[serve]"``."""
