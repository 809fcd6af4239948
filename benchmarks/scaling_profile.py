"""Where the time of a step goes: torch's profiler over steps, the largest operators, and their split into kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch.profiler import ProfilerActivity, profile

from benchmarks.measured import Figure, Spread
from benchmarks.scaling_workload import Workload, train_on
from torchrec_mtl.training.distributed import process_group

OTHER = "Python and other"
_LONGEST = 70
_KINDS = {
    "embedding lookup": r"fbgemm::.*(forward|bounds_check|permute|split_embedding_codegen_lookup)",
    "embedding backward and its optimizer": r"fbgemm::.*backward|split_embedding.*backward",
    "matrix products": r"aten::(mm|bmm|addmm|baddbmm|addbmm|matmul|linear|dot|mv|_addmm_activation)$",
    "dense optimizer": r"aten::(_foreach_\w+|_fused_\w+|addcdiv_|addcmul_|lerp_)$|Optimizer\.step",
    "copies and concatenation": r"aten::(copy_|cat|_to_copy|clone|stack|contiguous|index\w*|gather|select\w*|slice\w*"
    r"|narrow|split\w*|constant_pad_nd|zero_|fill_|empty\w*|zeros\w*|ones\w*|as_strided|expand|view|reshape|t|transpose"
    r"|permute|resize_|to|detach_?|unsqueeze|squeeze\w*|unbind|\w*alias\w*)$",
    "elementwise, norms, and reductions": r"aten::",
}


def kind_of(operator: str) -> str:
    """Return the kind of an operator, by its name in the profile.

    Example:
        >>> kind_of("aten::addmm"), kind_of("aten::mul"), kind_of("DistributedDataParallel.forward")
        ('matrix products', 'elementwise, norms, and reductions', 'Python and other')
    """
    return next((kind for kind, pattern in _KINDS.items() if re.match(pattern, operator)), OTHER)


def split(self_times: Mapping[str, float], wall: float) -> dict[str, float]:
    """Return each kind's share of the wall time, largest first.

    Args:
        self_times: operator -> time in itself, without the operators it calls.
        wall: time of everything, in the same unit; what no operator took is Python's.

    Example:
        >>> split({"aten::mm": 4.0, "aten::mul": 2.0}, wall=8.0)
        {'matrix products': 0.5, 'elementwise, norms, and reductions': 0.25, 'Python and other': 0.25}
    """
    shares = dict.fromkeys([*_KINDS, OTHER], 0.0)
    for operator, spent in self_times.items():
        shares[kind_of(operator)] += spent / wall
    shares[OTHER] = 1 - sum(share for kind, share in shares.items() if kind != OTHER)
    return {kind: share for kind, share in sorted(shares.items(), key=lambda item: -item[1]) if share}


def profile_steps(workload: Workload, steps: int, rows: int = 20) -> tuple[list[Figure], list[Figure]]:
    """Return the kinds and the largest operators of ``steps`` steps of a warm session, as shares of their time."""
    with process_group("cpu") as device:
        session = workload.open(device)
        batches = workload.batches(session, steps)
        train_on(session, batches)
        plain = train_on(session, batches)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            wall = train_on(session, batches)
    averages = sorted(found.key_averages(), key=lambda a: -a.self_cpu_time_total)
    self_times = {a.key: a.self_cpu_time_total / 1e6 for a in averages}
    whole = "the step"
    kinds = [
        Figure(whole, _single(wall / steps * 1000), "ms", _single(wall / plain), "without the profiler"),
        *(
            Figure(kind, _single(share * wall / steps * 1000), "ms", _single(share), whole)
            for kind, share in split(self_times, wall).items()
        ),
    ]
    operators = [
        Figure(
            a.key[:_LONGEST],
            _single(self_times[a.key] / steps * 1000),
            "ms",
            _single(self_times[a.key] / wall),
            whole,
            note=f"{a.count / steps:.1f} calls a step",
        )
        for a in averages[:rows]
    ]
    return kinds, operators


def _single(value: float) -> Spread:
    return Spread.of([value])
