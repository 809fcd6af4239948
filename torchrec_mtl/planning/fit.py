"""Where nothing fits: changes tried in order of cost, each by planning again, until one fits that a run can make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchrec_mtl.config.load import ConfigError, dump, parse
from torchrec_mtl.config.overrides import apply_overrides
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.config.text import read_yaml
from torchrec_mtl.planning.changes import Change, changes
from torchrec_mtl.planning.report import Attempt
from torchrec_mtl.planning.result import Plan, Shortage
from torchrec_mtl.planning.solve import solve
from torchrec_mtl.planning.words import why

Say = Callable[[str], None]


@dataclass(frozen=True)
class Mended:
    """What was tried.

    Attributes:
        attempts: in order.
        plan: of the last, where it fits; None: no change was enough.
        config: with that change; as it was, where none was enough.
    """

    attempts: tuple[Attempt, ...]
    plan: Plan | None
    config: RunConfig


def mend(config: RunConfig, shortage: Shortage, say: Say = lambda _: None) -> Mended:
    """Try changes until one fits.

    Args:
        config: that does not fit.
        shortage: on the cluster that was asked for.
        say: told each change before it is tried.
    """
    attempts: list[Attempt] = []
    for change in changes(config, shortage):
        say(f"does not fit; trying {change.what}")
        found = _try(config, shortage, change)
        plan = found if isinstance(found, Plan) else None
        attempts.append(
            Attempt(
                what=change.what,
                overrides=change.overrides,
                options=change.options,
                fits=plan is not None,
                reason="" if isinstance(found, Plan) else found,
            )
        )
        if plan is not None:
            return Mended(tuple(attempts), plan, changed(config, change.overrides))
    return Mended(tuple(attempts), None, config)


def changed(config: RunConfig, overrides: tuple[str, ...]) -> RunConfig:
    """Return a config with overrides, checked as from a file.

    Raises:
        ConfigError: the config cannot be changed so.
    """
    raw, problems = read_yaml(dump(config))
    problems = [*problems, *apply_overrides(raw, overrides)]
    return parse(raw, source="the changed config", problems=problems)


def _try(config: RunConfig, shortage: Shortage, change: Change) -> Plan | str:
    """Return the plan, or why there is none."""
    cluster = change.cluster or shortage.cluster
    try:
        found = solve(changed(config, change.overrides), cluster)
    except ConfigError as error:
        return "the config does not allow it: " + "; ".join(error.problems)
    except ValueError as error:  # a bottom or head that cannot have it
        return str(error)
    return found if isinstance(found, Plan) else why(found)
