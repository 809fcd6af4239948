"""Checks for anybody's head, bottom, loss, or gradient rule: does it keep the promises that the trainer relies on?"""

from __future__ import annotations

from torchrec_mtl.testing.bottom_contract import check_bottom
from torchrec_mtl.testing.export_contract import check_export
from torchrec_mtl.testing.head_contract import check_head
from torchrec_mtl.testing.loss_contract import check_loss
from torchrec_mtl.testing.rule_contract import check_rule

__all__ = ["check_bottom", "check_export", "check_head", "check_loss", "check_rule"]
