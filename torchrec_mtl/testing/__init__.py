"""For tests of plug-ins and of this package."""

from torchrec_mtl.testing.contracts import check_head, check_rule

__all__ = ["check_head", "check_rule"]
