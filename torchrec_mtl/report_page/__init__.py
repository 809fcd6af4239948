"""Reports as one HTML file that needs nothing else: of a run here, of a bench in ``torchrec_mtl.bench.page``."""
