"""Leaves out advice of torch that is not for users of this package."""

from __future__ import annotations

import logging


def leave_out_advice() -> None:
    """Drop torch's advice on a call of TorchRec's, shown once a process by every ``KeyedJaggedTensor`` and export."""
    logger = logging.getLogger("torch.fx._symbolic_trace")
    if _is_worth_showing not in logger.filters:
        logger.addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    return "is_fx_tracing will return true" not in record.getMessage()
