"""For tests of plug-ins and of this package."""

from torchrec_mtl.testing.contracts import check_head, check_rule
from torchrec_mtl.testing.ranks import run_ranks

__all__ = ["check_head", "check_rule", "run_ranks"]
