"""For tests of plug-ins and of this package."""

from torchrec_mtl.testing.contracts import check_bottom, check_export, check_head, check_loss, check_rule
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.testing.rule_ranks import check_rules_on_ranks

__all__ = [
    "check_bottom",
    "check_export",
    "check_head",
    "check_loss",
    "check_rule",
    "check_rules_on_ranks",
    "run_ranks",
]
