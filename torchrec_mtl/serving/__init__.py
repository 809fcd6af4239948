"""From a trained run to where it is used: bundles, predictors, and a server."""
