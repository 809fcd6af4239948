"""The command: check everything, run what is missing, choose, and write what came of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from torchrec_mtl.bench.folder import only_one
from torchrec_mtl.bench.requirements import require_extra
from torchrec_mtl.config.explain import ConfigError
from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.tuning.choose import RULES, Choice

if TYPE_CHECKING:
    from torchrec_mtl.bench.rows import LogOf
    from torchrec_mtl.bench.schedule import Course as Running
    from torchrec_mtl.tuning.results import Result
    from torchrec_mtl.tuning.rows import TuneRow
    from torchrec_mtl.tuning.study import Study


@dataclass(frozen=True)
class Options:
    """Of the command line.

    Attributes:
        config: the run's YAML.
        space: the space's YAML.
        words: overrides on the config.
        trials: in all, with those there are.
        out: folder; None: the config's run_dir with ``-tune``.
        processes: runs at once; None: the cores.
        choose: ``ideal``, ``rank``, or the number of a trial.
        prefer: ``objective=weight``.
        fresh: forget what the folder holds.
        retry_failed: run again what failed.
        dry_run: check and count only.
    """

    config: Path
    space: Path
    words: Sequence[str] = ()
    trials: int = 20
    out: Path | None = None
    processes: int | None = None
    choose: str = "ideal"
    prefer: Sequence[str] = ()
    fresh: bool = False
    retry_failed: bool = False
    dry_run: bool = False


class InterruptedTuningError(Exception):
    """The user asked to stop; finished runs are in the log."""


def tune(options: Options, console: Console) -> str:
    """Search, or go on; return the JSON that was written, or with ``dry_run`` that of the counts.

    Raises:
        ConfigError: config, space, or options are wrong, or the folder holds something else; nothing was trained.
        ValueError: every trial failed.
        InterruptedTuningError: the user asked to stop.
    """
    require_extra("tune")
    from torchrec_mtl.tuning.folder import check, enter
    from torchrec_mtl.tuning.rows import open_log
    from torchrec_mtl.tuning.study import open_study

    study = open_study(options.config, options.words, options.space, console, prepare=not options.dry_run)
    choice = read_choice(options, study)
    out = options.out or Path(f"{study.run.run_dir.rstrip('/')}-tune")
    check(out, study, fresh=options.fresh)
    if options.dry_run:
        return _count(study, options, choice, out, console)
    with only_one("tune", out):
        check(out, study, fresh=options.fresh)  # another one may have ended in between
        enter(out, study, fresh=options.fresh)
        log = open_log(out, forget_failed=options.retry_failed)
        return _tune(study, options, choice, log, out, console)


def read_choice(options: Options, study: Study) -> Choice:
    """Return the rule that the options ask for.

    Raises:
        ConfigError: they are wrong.
    """
    from torchrec_mtl.tuning.objectives import weights_by_name

    problems, given = [], []
    for word in options.prefer:
        name, separator, text = word.partition("=")
        weight = _positive(text)
        if not separator or weight is None:
            example = study.objectives[0].task
            problems.append(f"--prefer {word}: expected an objective and a number above 0, such as {example}=2")
        else:
            given.append((name, weight))
    weights, wrong = weights_by_name(given, study.objectives, "--prefer {}")
    problems += wrong
    rule: str | int = options.choose
    if options.choose.isdigit():
        rule = int(options.choose)
    elif rule not in RULES:
        hint = did_you_mean(options.choose, RULES)
        problems.append(f"--choose {options.choose}: expected ideal, rank, or the number of a trial.{hint}")
    why = "--choose names a trial" if isinstance(rule, int) else ""
    why = "the space's weights make one number of all objectives" if study.weights is not None else why
    why = "there is one objective" if len(study.objectives) == 1 else why
    if options.prefer and why:
        problems.append(f"--prefer: cannot act, since {why}; remove it")
    if problems:
        raise ConfigError(problems, source="torchrec-mtl tune")
    return Choice(rule if isinstance(rule, int) else "rank" if rule == "rank" else "ideal", weights)


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _tune(study: Study, options: Options, choice: Choice, log: LogOf[TuneRow], out: Path, console: Console) -> str:
    from torchrec_mtl.bench.schedule import Course as Running
    from torchrec_mtl.tuning.course import Course, seed_jobs, seeds_plan, trials_plan
    from torchrec_mtl.tuning.files import check_best, write
    from torchrec_mtl.tuning.folder import note_trials
    from torchrec_mtl.tuning.report import make_report
    from torchrec_mtl.tuning.results import Point, conclude, finalists, front_of

    course = Course()
    count, _ = _wanted(study, options, log, out)
    _check_asked(choice, count)
    if count > options.trials:
        _say(console, f"{count} trials are there, more than --trials {options.trials}: all of them count")
    _run(Running(trials_plan(study, count, course), count), study, options, log, out, console)
    note_trials(out, study, count)
    jobs = [seed_jobs(study, trial) for trial in finalists(study, course.trials, choice)]
    flat = [job for of_trial in jobs for job in of_trial]
    on_front, seeds = len(front_of(course.trials)), len(study.space.seeds)
    _say(console, f"not beaten by another: {on_front} trials; now {len(jobs)} points with {seeds} seeds each")
    _run(Running(seeds_plan(flat), len(flat)), study, options, log, out, console)
    points = []
    by_number = {trial.number: trial for trial in course.trials}
    for of_trial in jobs:
        rows = [log.find(job.key) for job in of_trial]
        points.append(Point(by_number[of_trial[0].number], tuple(row for row in rows if row is not None)))
    result = conclude(study, course.trials, points, choice)
    report = make_report(result)
    text = write(result, report, course.optuna, out)
    check_best(result, out)
    _show(result, out, console)
    return text


def _wanted(study: Study, options: Options, log: LogOf[TuneRow], out: Path) -> tuple[int, int]:
    """Return how many trials to have, those asked for or those there are where they are more; and how many are there.

    Rows do not say it: trials that repeat a config, or whose settings do not go together, have none.
    """
    from torchrec_mtl.tuning.course import replay
    from torchrec_mtl.tuning.folder import num_trials

    of_rows = [row.number for row in log.rows if row.phase == "trial"]
    known = replay(study, max(options.trials, num_trials(out), len(of_rows), *of_rows), log)
    return max([options.trials, len(known.trials), *known.known]), len(known.trials) + len(known.known)


def _check_asked(choice: Choice, count: int) -> None:
    if isinstance(choice.rule, int) and not 1 <= choice.rule <= count:
        text = f"--choose {choice.rule}: there are trials 1 to {count}; choose one of them, or ask for more --trials"
        raise ConfigError([text], source="torchrec-mtl tune")


def _run(
    course: Running[TuneRow], study: Study, options: Options, log: LogOf[TuneRow], out: Path, console: Console
) -> None:
    from torchrec_mtl.bench.schedule import Logged, run_courses
    from torchrec_mtl.bench.workers import Workers
    from torchrec_mtl.tuning.folder import FAILED, WORK

    count = options.processes or os.cpu_count() or 1
    workers: Workers[Logged[TuneRow]] = Workers(count, out / WORK, failed=out / FAILED, timeout_s=study.space.timeout_s)
    try:
        run_courses([course], log, workers, lambda line: _say(console, line))
    except KeyboardInterrupt:
        raise InterruptedTuningError(f"stopped; {len(log.rows)} finished runs are in {log.path}") from None


def _count(study: Study, options: Options, choice: Choice, out: Path, console: Console) -> str:
    from torchrec_mtl.tuning.rows import open_log

    count, known = options.trials, 0
    if not options.fresh:
        count, known = _wanted(study, options, open_log(out, forget_failed=options.retry_failed), out)
    _check_asked(choice, count)
    seeds = len(study.space.seeds)
    several = study.weights is None and len(study.objectives) > 1
    points = 1 + (study.space.front if several else 1) + isinstance(choice.rule, int)  # untuned, front, asked for
    points = min(points, count)
    found = {"trials": count, "known_trials": known, "most_points": points, "seeds": seeds}
    found["most_runs"] = count - known + points * seeds
    goals = ", ".join(o.name for o in study.objectives)
    _say(
        console,
        f"config and space are fine; objectives: {goals}; {count} trials, {known} of them in {out}, then at "
        f"most {points} points with {seeds} seeds each: at most {found['most_runs']} runs to do",
    )
    return json.dumps(found, indent=2) + "\n"


def _show(result: Result, out: Path, console: Console) -> None:
    from torchrec_mtl.tuning.report import against_untuned, comparison, failures
    from torchrec_mtl.tuning.terminal import print_table

    print_table(console, comparison(result, result.split))
    failed = failures(result)
    if failed:
        where = f"what they had printed is in {out / 'failed'}"
        _say(console, f"{len(failed)} runs failed, the first: {failed[0]}; {where}")
    if result.chosen is None and isinstance(result.choice.rule, int):
        text = f"a seed of trial {result.choice.rule} failed; --retry-failed runs it again, or --choose another"
        _say(console, f"nothing is chosen: {text}")
    elif result.chosen is None:
        _say(console, "nothing to choose: no point was trained with all its seeds; --retry-failed runs them again")
    elif not result.chosen.trial.words:
        _say(console, f"chosen: the config as it is ({result.choice.said}): tuning did not pay")
    else:
        _say(console, f"chosen: {result.chosen.name} ({result.choice.said}): {' '.join(result.chosen.trial.words)}")
        for line in against_untuned(result):
            _say(console, f"  against untuned, {result.split} rows: {line}")
    best = ", best.yaml" if result.chosen is not None else ""
    _say(console, f"{out / 'front.html'}, front.md, front.json{best}, and plots are written")
    if result.chosen is not None:
        _say(console, f"train it: torchrec-mtl train {out / 'best.yaml'}")


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)
