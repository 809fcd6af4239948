"""Checks for anybody's head or gradient rule: does it keep the promises that the trainer relies on?"""

from __future__ import annotations

from torchrec_mtl.testing.head_contract import check_head
from torchrec_mtl.testing.rule_contract import check_rule

__all__ = ["check_head", "check_rule"]
