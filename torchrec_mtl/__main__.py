"""``python -m torchrec_mtl``: what TorchX launches."""

from torchrec_mtl.cli import main

if __name__ == "__main__":
    main()
