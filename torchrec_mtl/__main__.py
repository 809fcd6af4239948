"""``python -m torchrec_mtl``: what TorchX launches."""

from torchrec_mtl.restarts import end_if_hopeless

if __name__ == "__main__":
    end_if_hopeless()
    from torchrec_mtl.cli import main

    main()
