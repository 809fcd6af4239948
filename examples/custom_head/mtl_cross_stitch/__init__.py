"""Head `cross_stitch` and gradient rule `random_weights` for torchrec_mtl."""
