"""YAML with something wrong in it, drawn by a generator of random numbers: as text, and as a config."""

# ruff: noqa: ARG001 - all kinds are called alike
from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks.bad_inputs_tables import Bad

# No value that is allowed and asks for more than a small machine has: that is another kind of mistake.
_VALUES = [
    *(
        "",
        "word",
        "no such thing",
        "\u4f60 \u00fc",
        "a\nb",
        "\x07",
        "x" * 3000,
        "{}",
        "[1",
        "null",
        "1e-3",
        "os:system",
    ),
    *(-1, 0, -(2**70), 2**70, 10**400, 1.5, -0.5, 1e308, float("nan"), float("inf"), True, False, None),
    *([], [None], [[]], {}, {"a": 1}, {1: 2}, [{"name": "user"}], [1, "a"], datetime.date(2024, 2, 30 - 1)),
]


def _places(node: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _at(raw: Any, path: tuple[Any, ...]) -> Any:  # noqa: ANN401
    for key in path:
        raw = raw[key]
    return raw


def _write(raw: object, path: Path) -> None:
    path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")


def wrong_value(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """A setting has a value of another type, or out of its range."""
    place, value = rng.choice([*_places(raw)]), rng.choice(_VALUES)
    _at(raw, place[:-1])[place[-1]] = value
    _write(raw, path)
    where = ".".join(map(str, place))
    # What may be a column is looked for in the tables, and these are named with it.
    return Bad(f"{where} is {str(value)[:40]!r}", (str(place[0]), str(path), ".parquet"))


def missing_key(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """A setting, a section, or an entry is not there."""
    place = rng.choice([*_places(raw)])
    del _at(raw, place[:-1])[place[-1]]
    _write(raw, path)
    return Bad(f"{'.'.join(map(str, place))} is gone", (str(place[0]), str(path)))


def unknown_key(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """A key is there that nobody knows, or that is no text."""
    node = _at(raw, rng.choice([(), *(p for p in _places(raw) if isinstance(_at(raw, p), dict))]))
    key = rng.choice(["epocs", "", "\u00fc", "a.b", "type ", 1, None, True, 1.5, "x" * 500, "__class__"])
    node[key] = rng.choice([1, "word", [], {"a": 1}])
    _write(raw, path)
    return Bad(f"unknown key {str(key)[:20]!r}", (str(path),), fails=True)


def not_a_run(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """A document of something else: a list, a number, nothing, several."""
    text = rng.choice(
        ["", "# nothing\n", "- 1\n- 2\n", "word", "3", "null", "~", "---\n---\n", "a: 1\n---\nb: 2\n", "{}", "[[]]"]
    )
    path.write_text(text)
    return Bad(f"{text!r} is no run", (str(path),), fails=True)


def not_yaml(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """Text that is no YAML, or stops in the middle."""
    text = yaml.safe_dump(raw, sort_keys=False)
    place = rng.randrange(len(text))
    weird = rng.choice(["\t", "{", "]", '"', "'", "*no", "&a &b", "%", "@", "`", ": :", "\x00", "\x1b", "!", "? "])
    text = text[:place] if rng.random() < 0.3 else text[:place] + weird + text[place:]
    path.write_text(text)
    # It may still be YAML, of other names.
    return Bad(f"{weird!r} at {place}, or cut there", (str(path), *raw))


def not_text(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """Bytes that are no UTF-8."""
    text = yaml.safe_dump(raw, sort_keys=False)
    place = rng.randrange(len(text))
    contents = [
        text.encode("utf-16"),
        text[:place].encode() + rng.choice([b"\xff", b"\xc3(", b"\xed\xa0\x80"]) + text[place:].encode(),
        b"\x89PNG\r\n\x1a\n" + rng.randbytes(100),
        b"\xff" + rng.randbytes(50),
    ]
    path.write_bytes(rng.choice(contents))
    return Bad("no text in UTF-8", (str(path),), fails=True)


def key_twice(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """A key is given twice."""
    text = yaml.safe_dump(raw, sort_keys=False)
    key = rng.choice([*raw])
    path.write_text(text + f"{key}: {rng.choice(['1', '{}', '[]', 'word'])}\n")
    return Bad(f"{key} is given twice", (str(path),), fails=True)


def expanding(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """Aliases of aliases: a few lines that stand for billions, or for themselves."""
    width = rng.randrange(2, 12)
    lines = ["a0: &a0 [1, 2]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, rng.randrange(30, 60))]
    merges = ["b0: &b0 {x: 1}"] + [f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}" for i in range(1, 20)]
    text = rng.choice(["\n".join(lines), "\n".join(merges), "a: &a [*a]", "a: &a {b: *a}", "a: &a\n  <<: *a\n"])
    path.write_text(f"{text}\n{yaml.safe_dump(raw, sort_keys=False)}")
    return Bad("aliases of aliases", (str(path),), fails=True)


def deep(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """Lists or mappings in each other, thousands deep."""
    depth = rng.choice([400, 1000, 5000, 30_000])
    text = rng.choice(["[" * depth + "]" * depth, "{a: " * depth + "1" + "}" * depth, "- " * depth + "1"])
    raw.pop("bottom", None)
    path.write_text(f"{yaml.safe_dump(raw, sort_keys=False)}bottom:\n  {text}\n")
    return Bad(f"{depth} levels", (str(path),), fails=True)


def python_tag(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """Tags by which an unsafe loader makes objects; ``path.proof`` would be there if one did."""
    proof = path.with_suffix(".proof")
    tag = rng.choice(
        [
            f"!!python/object/apply:os.system ['touch {proof}']",
            f"!!python/object/new:open ['{proof}', w]",
            f"!!python/object/apply:builtins.open ['{proof}', w]",
            "!!python/name:os.system",
            "!!python/module:os",
            "!!python/tuple [1]",
            "!mine {a: 1}",
            "!<tag:yaml.org,2002:python/object/apply:os.abort> []",
        ]
    )
    key = rng.choice(["bottom", "head", "data", "run_dir", "tasks"])
    raw.pop(key, None)
    path.write_text(f"{key}: {tag}\n{yaml.safe_dump(raw, sort_keys=False)}")
    return Bad(f"{key}: {tag[:40]}", (str(path),), fails=True)


def odd_scalar(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """Scalars that a loader of YAML reads as something, and fails at."""
    scalar = rng.choice(
        [
            *("!!int x", "!!int ''", "!!float x", "!!bool maybe", "!!timestamp x", "2024-13-45", "!!binary '@'"),
            *("!!set {a, b}", "!!omap [a]", "!!pairs [a]", "!!map x", "!!seq x", "!!null x", "{[1]: 2}", "{{a: 1}: 2}"),
            *(
                "9" * 5000,
                "0x" + "f" * 5000,
                "1:61:61",
                "190:20:30.15",
                ".nan",
                "-.inf",
                "2001-12-14t21:59:43.10-99:00",
            ),
        ]
    )
    place = rng.choice([p for p in _places(raw) if isinstance(p[-1], str)])
    _at(raw, place[:-1])[place[-1]] = "PLACE"
    path.write_text(yaml.safe_dump(raw, sort_keys=False).replace("PLACE", scalar, 1))
    return Bad(f"{'.'.join(map(str, place))}: {scalar[:30]}", (str(path), str(place[0])))


def no_file(rng: Random, raw: dict[str, Any], path: Path) -> Bad:
    """No file, a folder, a link to itself."""
    how = rng.choice(["gone", "folder", "loop", "dangling"])
    if how == "folder":
        path.mkdir()
    elif how != "gone":
        path.symlink_to(path if how == "loop" else path.with_name("gone"))
    return Bad(f"config is {how}", (str(path),), fails=True)


YAML_KINDS: Mapping[str, Callable[[Random, dict[str, Any], Path], Bad]] = {
    "wrong value": wrong_value,
    "missing key": missing_key,
    "unknown key": unknown_key,
    "not a run": not_a_run,
    "not YAML": not_yaml,
    "not text": not_text,
    "key twice": key_twice,
    "expanding aliases": expanding,
    "deep nesting": deep,
    "Python tags": python_tag,
    "odd scalars": odd_scalar,
    "no file": no_file,
}


def spoil_yaml(kind: str, rng: Random, raw: Mapping[str, Any], path: Path) -> Bad:
    """Write a spoilt YAML.

    Args:
        kind: of `YAML_KINDS`.
        rng: draws what is spoilt.
        raw: a good config or suite; not changed.
        path: to write.
    """
    return YAML_KINDS[kind](rng, copy.deepcopy(dict(raw)), path)


def override(rng: Random, raw: Mapping[str, Any]) -> tuple[str, Bad]:
    """Return a word that should have been ``key.path=value``."""
    place = rng.choice([*_places(raw)])
    key = ".".join(map(str, place))
    word = rng.choice(
        [
            *(f"{key}=[", f"{key}=&a [*a]", f"{key}=!!python/name:os.system", f"{key}=\t", f"{key}={{a: 1, a: 2}}"),
            *(
                f"{key}.more.and.more=1",
                f"{key}=" + "[" * 2000,
                f"{key}=2024-13-45",
                f"{key}=\x00",
                f"{key}=9{'9' * 5000}",
            ),
            *("=1", "word", ".=1", "..=1", "tasks.99.weight=1", "tasks.-1.weight=1", "tasks.click=1", "", " =1"),
            *("tasks.\u0662.weight=1", "tasks.\u00b2.weight=1", "features=3", "data.train.0=x", "head.type=null"),
        ]
    )
    return word, Bad(f"override {word[:60]!r}", (word.partition("=")[0].split(".")[0], "override"))
