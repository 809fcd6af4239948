"""The skeleton of a package with a plug-in: what ``torchrec-mtl new`` writes."""
