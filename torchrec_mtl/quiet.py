"""Leaves out advice of torch that is not for users of this package."""

from __future__ import annotations

import logging

_OF_LOGGERS = {
    # On a call of TorchRec's, shown once a process by every ``KeyedJaggedTensor`` and export.
    "torch.fx._symbolic_trace": "is_fx_tracing will return true",
    # Of sizes that a program no longer asks about, shown for each of them at each load.
    "torch._export.serde.serialize": "did not appear in the graph that was deserialized",
}


def leave_out_advice() -> None:
    """Drop what torch says to those who write models, not to those who run them."""
    for name, advice in _OF_LOGGERS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Without) for f in logger.filters):
            logger.addFilter(_Without(advice))


class _Without(logging.Filter):
    def __init__(self, advice: str) -> None:
        super().__init__()
        self._advice = advice

    def filter(self, record: logging.LogRecord) -> bool:
        return self._advice not in record.getMessage()
