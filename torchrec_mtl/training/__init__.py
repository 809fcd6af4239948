"""The trainer and what it needs: processes, sharding, optimizers, checkpoints, evaluation, metrics, sinks."""
