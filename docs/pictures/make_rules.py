"""Draw what gradient rules make of two tasks' gradients: the pictures of docs/rules_in_pictures.md.

    python docs/pictures/make_rules.py [--out docs/pictures]

Every weight in them comes from the rule classes that training uses. Needs matplotlib (extra ``bench``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torchrec_mtl import registry

# Gradients [2] of two tasks; the second one is the core, as watch time is to click.
SCENES = {
    "conflict": ((-1.2, 0.8), (2.4, 0.6)),
    "agree": ((0.25, 1.0), (2.8, 0.7)),
}
# What each rule is given beside its name, and how many steps it sees these gradients (and equal losses) for.
RULES: Mapping[str, tuple[Mapping[str, object], int]] = {
    "sum": ({}, 1),
    "htlnet": ({"core": "watch", "alpha": 1.0, "gamma": 0.5}, 1),
    "metabalance": ({"core": "watch", "relax": 0.7}, 1),
    "gradnorm": ({}, 1000),
    "pcgrad": ({}, 1),
    "mgda": ({}, 1),
    "cagrad": ({}, 1),
    "upgrad": ({}, 1),
}
TASKS = ("click", "watch")
_LEGEND = "thin: the tasks' gradients  ·  dashed: times their weights  ·  thick: what the tables get"
CLICK, WATCH, INK, CARD, FAINT = "#2183c9", "#d95f02", "#101112", "#fefdfc", "#a0a1a2"
# The last three follow the reader's colour scheme; the card makes the picture legible on any page.
_SCHEMES = {
    INK: ("--ink", "#1f2328", "#e6e8ea"),
    CARD: ("--card", "#ffffff", "#1e2129"),
    FAINT: ("--faint", "#c8ccd0", "#4a4f58"),
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rules",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
}


@dataclass(frozen=True)
class Outcome:
    """What a rule makes of two gradients.

    Attributes:
        weights: [2], of click and watch.
        combined: [2], the weighted sum.
        progress: [2], inner products of the combined gradient with each task's: below 0, a step makes the task worse.
    """

    weights: Tensor
    combined: Tensor
    progress: Tensor


def outcome(rule: str, gradients: Tensor) -> Outcome:
    """Ask a rule for weights.

    Args:
        rule: its name in the YAML.
        gradients: [2, 2], a row a task.
    """
    options, steps = RULES[rule]
    rule_class = registry.resolve("rule", rule)
    module = rule_class(rule_class.Config(type=rule, **options), TASKS)
    gramian = (gradients @ gradients.T).unsqueeze(0)
    for _ in range(steps):
        weights = module.weights(gramian, torch.ones(2)).reshape(-1)[:2]
    combined = weights @ gradients
    return Outcome(weights, combined, gradients @ combined)


def draw_scene(name: str, folder: Path) -> Path:
    """Draw all rules on one pair of gradients."""
    gradients = torch.tensor(SCENES[name])
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.8, 4.3))
        axes = figure.subplots(2, 4).ravel()
        for axis, rule in zip(axes, RULES, strict=True):
            _draw_rule(axis, rule, gradients, named=axis is axes[0])
        figure.text(0.5, 0.015, _LEGEND, ha="center")
        figure.subplots_adjust(left=0.01, right=0.99, top=0.94, bottom=0.2, wspace=0.05, hspace=0.72)
        return _save(figure, folder / f"rules-{name}.svg")


def draw_rows(folder: Path) -> Path:
    """Draw one table row that a batch looks up twice: the boundary's inner product and the row's own."""
    click, watch = torch.tensor(((1.2, 0.9), (-2.0, 0.5))), torch.tensor(((1.3, -0.2), (0.8, 1.0)))
    pairs = [(click[0], watch[0], "first lookup"), (click[1], watch[1], "second lookup")]
    pairs.append((click.sum(0), watch.sum(0), "the row: their sums"))
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.8, 2.2))
        for axis, (a, b, title) in zip(figure.subplots(1, 3).ravel(), pairs, strict=True):
            _frame(axis, title, x=(-3.0, 3.7), y=(-0.6, 2.0))
            _arrow(axis, a, CLICK, "click")
            _arrow(axis, b, WATCH, "watch")
            axis.text(0.5, -0.15, f"inner product {float(a @ b):+.2f}", transform=axis.transAxes, ha="center")
        boundary, row = float((click * watch).sum()), float(click.sum(0) @ watch.sum(0))
        text = f"exact: boundary adds up the lookups, {boundary:+.2f}  ·  exact: rows takes the row, {row:+.2f}"
        figure.text(0.5, 0.03, text, ha="center")
        figure.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.26, wspace=0.04)
        return _save(figure, folder / "rows.svg")


def _draw_rule(axis: Axes, rule: str, gradients: Tensor, *, named: bool) -> None:
    found = outcome(rule, gradients)
    _frame(axis, rule, x=(-2.9, 5.0), y=(-0.4, 3.2))
    for gradient, weight, color, name in zip(gradients, found.weights, (CLICK, WATCH), TASKS, strict=True):
        _arrow(axis, gradient * weight, color, "", faint=True)
        _arrow(axis, gradient, color, name if named else "")
    _arrow(axis, found.combined, INK, "", wide=True)
    weights, progress = found.weights.tolist(), found.progress.tolist()
    lines = f"weights {weights[0]:.2f}, {weights[1]:.2f}\nhelps {progress[0]:+.2f}, {progress[1]:+.2f}"
    axis.text(0.5, -0.04, lines, transform=axis.transAxes, ha="center", va="top", linespacing=1.35)


def _frame(axis: Axes, title: str, *, x: tuple[float, float], y: tuple[float, float]) -> None:
    axis.set(xlim=x, ylim=y, aspect="equal", xticks=[], yticks=[])
    axis.set_facecolor(CARD)
    for spine in axis.spines.values():
        spine.set_color(FAINT)
    axis.axhline(0, color=FAINT, linewidth=0.7, zorder=0)
    axis.axvline(0, color=FAINT, linewidth=0.7, zorder=0)
    axis.set_title(title, fontsize=11, fontweight="bold", pad=4)


def _arrow(axis: Axes, to: Tensor, color: str, name: str, *, faint: bool = False, wide: bool = False) -> None:
    x, y = to.tolist()
    look = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 15 if wide else 11}
    look |= {"linewidth": 2.6 if wide else 1.8, "linestyle": (0, (2, 2)) if faint else "-"}
    axis.annotate("", xy=(x, y), xytext=(0, 0), arrowprops=look)
    if name:
        side = "left" if x >= 0 else "right"
        axis.annotate(name, (x, y), xytext=(4 if x >= 0 else -4, 2), textcoords="offset points", color=color, ha=side)


def _save(figure: Figure, path: Path) -> Path:
    figure.set_facecolor(CARD)
    figure.savefig(path, format="svg", facecolor=CARD, metadata={"Date": None})
    text = path.read_text(encoding="utf-8")
    for color, (variable, _, _) in _SCHEMES.items():
        text = text.replace(color, f"var({variable})")
    light, dark = (" ".join(f"{scheme[0]}: {scheme[which]};" for scheme in _SCHEMES.values()) for which in (1, 2))
    style = f"<style>svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    text = text.replace(" <metadata>", f" {style}\n <metadata>", 1)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description="Draw what gradient rules make of two tasks' gradients.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*(draw_scene(name, folder) for name in SCENES), draw_rows(folder)):
        print(path)
    for name, pair in SCENES.items():
        print(f"\n{name}: click {pair[0]}, watch {pair[1]}")
        for rule in RULES:
            found = outcome(rule, torch.tensor(pair))
            print(f"{rule:12} weights {found.weights.tolist()} helps {found.progress.tolist()}")


if __name__ == "__main__":
    main()
