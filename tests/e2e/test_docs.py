"""The documents' code: Python runs as it stands, whole configs are configs, commands are commands there are."""

import argparse
import contextlib
import io
import random
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from torchx.cli.argparse_util import ArgOnceAction, torchxconfig
from torchx.cli.cmd_run import CmdRun, _parse_component_name_and_args
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_component

from tests.documents import LANGUAGES, SHELL, Block, blocks, command_lines, inline_launches, run_python
from torchrec_mtl.cli import app
from torchrec_mtl.config.load import load_config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
PAGES = [page for page in PAGES if "```" in page.read_text(encoding="utf-8")]
WHOLE = {"data", "features", "tasks", "head"}  # a YAML with these sections is a run


def name(page):
    return str(page.relative_to(ROOT).with_suffix(""))


def to_run(page, *languages):
    return [block for block in blocks(page) if block.language in languages and block.reason is None]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_code_of_a_page_is_right(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: what is that? Known:{', '.join(sorted(LANGUAGES))}"
        assert block.reason is None or len(block.reason) > 5, f"{block}: say why it is not run"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        run_python(to_run(page, "python"))
    for block in to_run(page, "yaml"):
        check_yaml(block, tmp_path)
    for block in to_run(page, *SHELL):
        for words in command_lines(block):
            check_command(block, words)
    for block in [*to_run(page, *SHELL), *inline_launches(page)]:
        for words in command_lines(block, "torchx"):
            check_launch(block, words)


def check_yaml(block, folder):
    """It is YAML; and, with the sections of a run, a config."""
    try:
        documents = list(yaml.safe_load_all(block.text))
    except yaml.YAMLError as error:
        raise AssertionError(f"{block}: {error}") from error
    if len(documents) == 1 and isinstance(documents[0], dict) and set(documents[0]) >= WHOLE:
        file = folder / f"{block.line}.yaml"
        file.write_text(block.text)
        try:
            load_config(file)
        except ValueError as error:
            raise AssertionError(f"{block}: {error}") from error


def check_command(block, words):
    """There is such a command, with such options; and such settings, where it names a config of this repository."""
    try:
        given = parse(words)
        config = given.get("config")
        if isinstance(config, Path) and (ROOT / config).is_file():
            load_config(ROOT / config, given.get("overrides") or ())
    except Exception as error:
        raise AssertionError(f"{block}: torchrec-mtl {' '.join(words)}: {error}") from error


def parse(words):
    """Return what the command is given, without running it."""
    command = typer.main.get_command(app)
    context = command.make_context("torchrec-mtl", list(words))
    while hasattr(command, "resolve_command"):
        word, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(word, rest, parent=context)
    return context.params


def check_launch(block, words):
    """There is such a component, with such options; and what it would start is a command or a script that there is."""
    started, said = f"{block}: torchx {' '.join(words)}", io.StringIO()
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stderr(said):
            component, options = parse_launch(words)
            app = materialize_appdef(get_component(component).fn, options)
    except (Exception, SystemExit) as error:  # argparse ends the program, having said why
        raise AssertionError(f"{started}: {error} {said.getvalue()}") from error
    if component == "dist.ddp":
        script = options[options.index("--script") + 1]
        assert (ROOT / script).is_file(), f"{started}: there is no {script}"
        return
    line = shlex.split(app.roles[0].args[-1])
    check_command(block, line[line.index("torchrec_mtl") + 1 :])


def parse_launch(words):
    """Return the component of ``torchx run`` and its options."""
    for action in (torchxconfig, ArgOnceAction):
        action.called_args.clear()  # of the process, which sees one command line elsewhere
    parser = argparse.ArgumentParser(prog="torchx run")
    CmdRun().add_arguments(parser)
    return _parse_component_name_and_args(parser.parse_args(words[1:]).component_name_and_args, parser)


def page_of(folder, text):
    page = folder / "page.md"
    page.write_text(text)
    return page


def test_a_block_that_fails_is_told_by_its_line(tmp_path):
    page = page_of(tmp_path, "# Page\n\n```python\na = 1\n```\n\n```python\nb = a\n\nb / 0\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:10: ZeroDivisionError"):
        run_python(blocks(page))
    page = page_of(tmp_path, "```python\na = 1\na = = 2\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:3: SyntaxError"):
        run_python(blocks(page))


def test_blocks_of_a_page_go_on_from_one_another_and_their_classes_can_be_imported(tmp_path):
    text = "```python\nclass Mine:\n    pass\n```\n\n1. In a list:\n\n"
    text += "   ```python\n   import importlib\n   mine = Mine\n   ```\n"
    text += "```python\nassert importlib.import_module(Mine.__module__).Mine is mine\nfound = 1\n```\n"
    assert run_python(blocks(page_of(tmp_path, text)))["found"] == 1


def test_a_mark_needs_a_reason_and_holds_for_the_next_block_alone(tmp_path):
    text = "<!-- not run: needs a GPU -->\n\n```python\n1 / 0\n```\n\nText.\n\n```python\na = 1\n```\n"
    first, second = blocks(page_of(tmp_path, text))
    assert (first.reason, second.reason) == ("needs a GPU", None)
    assert (first.line, second.line) == (4, 10)
    [empty] = blocks(page_of(tmp_path, "<!-- not run: -->\n```python\n1 / 0\n```\n"))
    assert empty.reason == ""


def test_a_run_that_is_none_is_told(tmp_path):
    block = Block(tmp_path / "page.md", 7, "yaml", "data: {}\nfeatures: {}\ntasks: []\nhead: htlnt\n", None)
    with pytest.raises(AssertionError, match=r"(?s)page\.md:7.*Did you mean 'htlnet'"):
        check_yaml(block, tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md:7"):
        check_yaml(Block(tmp_path / "page.md", 7, "yaml", "a: [", None), tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("torchrec-mtl tarin run.yaml", "No such command 'tarin'"),
        ("torchrec-mtl train run.yaml --frsh", "No such option: --frsh"),
        ("torchrec-mtl list headz", "'headz' is not one of"),
        ("torchrec-mtl train examples/cdnow/htlnet.yaml head.towr=[8]", "towr"),
        ("$ torchrec-mtl train examples/cdnow/htlnet.yaml \\\n   train.speed=3 && echo done", "speed"),
    ],
)
def test_a_command_that_there_is_not_is_told(line, message, tmp_path):
    block = Block(tmp_path / "page.md", 7, "console", line, None)
    [words] = command_lines(block)
    with pytest.raises(AssertionError, match=message):
        check_command(block, words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("torchx run components/train.py:htlnt", "htlnt"),
        ("torchx run components/train.py:htlnet --nprocs 2", "unrecognized arguments: --nprocs"),
        ("torchx run --dry components/train.py:htlnet train.epochs=1 --nproc 2", "options come before"),
        ("torchx run components/train.py:htlnet train.epoch=1", "Did you mean 'epochs'"),
        ("torchx run components/train.py:dtrn --config examples/kuairand/dtrn.yaml head.rounds=1", "rounds"),
        ("torchx run -s slrm components/train.py:htlnet", "invalid choice: 'slrm'"),
        ("torchx run dist.ddp -j 1x2 --script examples/embed_in_dlrn.py", "there is no examples/embed_in_dlrn.py"),
        (
            "torchx run components/serving.py:serve --bundle DIR --args '--acess-log yes'",
            "No such option: --acess-log",
        ),
    ],
)
def test_a_launch_that_fails_is_told(line, message, tmp_path):
    text = f"# Page\n\nIn a sentence `{line}`.\n"
    [inline] = inline_launches(page_of(tmp_path, text))
    assert (inline.line, inline.text) == (3, line)
    block = Block(tmp_path / "page.md", 7, "console", f"$ {line}  # so", None)
    [words] = command_lines(block, "torchx")
    with pytest.raises(AssertionError, match=message):
        check_launch(block, words)


def test_comments_and_what_follows_a_command_are_no_words_of_it(tmp_path):
    text = "torchrec-mtl list heads | head -3  # three\n$ torchrec-mtl doctor    # all\nmake train\nhtlnet  a line\n"
    found = list(command_lines(Block(tmp_path / "page.md", 1, "console", text, None)))
    assert found == [["list", "heads"], ["doctor"]]
