"""Every command with missing, surplus and absurd arguments: it answers in one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from edgediffusion.runtime.arguments import Parser
from edgediffusion.runtime.cli import AGAINST, COMMANDS, main

UPPER = sorted(entry.name for entry in entry_points(group="edgediffusion.commands"))
# No NUL: no process can be given one.
ABSURD = ["", "-1", "nan", "1e999", "0x0", "\udcff", "x" * 5000, "../../../none", "[]"]


def answer(*arguments: str) -> tuple[int, str]:
    """Status, and what is said on stderr, which takes what is no UTF-8, as the interpreter's own does."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        return main(arguments), stderr.getvalue()


class Found(Exception):
    """The parser of a command, in the place of what it would have read."""


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> Parser:
    def parse_args(self: Parser, arguments: Sequence[str]) -> None:
        raise Found(self)

    with monkeypatch.context() as context:
        context.setattr(Parser, "parse_args", parse_args)
        with pytest.raises(Found) as caught:
            main([command])
    parser = caught.value.args[0]
    assert isinstance(parser, Parser)
    return parser


def trials(parser: Parser) -> Iterator[list[str]]:
    """Every option that takes a value with each absurd one, beside positional arguments that lead nowhere."""
    actions = parser._actions
    wanted = [
        action.choices[0] if isinstance(action.choices, tuple) else "./none"
        for action in actions
        if not action.option_strings
    ]
    yield from ([], ["--no-such-option"], ["--=", "x"], ["--"], ["-"])
    yield [*wanted, *["surplus"] * 9]
    for value in ABSURD:
        yield [value]
        yield [*wanted[:-1], value]
    for action in actions:
        if AGAINST in action.option_strings:  # the export layer's, with torch
            continue
        if action.option_strings and action.nargs != 0:
            name = action.option_strings[-1]
            yield [*wanted, name]
            yield from ([*wanted, f"{name}={value}"] for value in ABSURD)
        elif action.option_strings and not isinstance(action, argparse._HelpAction):
            yield [*wanted, f"{action.option_strings[-1]}=surplus"]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_answers_in_one_line(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    refused = 0
    for arguments in trials(parser_of(command, monkeypatch)):
        if not arguments and command in ("doctor", "schedulers", "warm"):  # nothing is missing
            continue
        if command == "generate" and arguments:
            arguments = ["--bundle=./none", *arguments]
        if command == "warm":
            arguments = ["--bundle=./none", *arguments]
        status, err = answer(command, *arguments)
        if status == 0:
            assert "error" not in err, arguments
            continue
        refused += 1
        assert status == 2, arguments
        assert err.count("\n") == 1, (arguments, err)
        assert err.startswith("edgediffusion: error: "), (arguments, err)
    assert refused >= 6
    journal = {"journal.jsonl", ".edgediffusion.lock"} if command == "run" else set()  # "" is this folder
    assert {path.name for path in tmp_path.iterdir()} <= journal | {"edgediffusion"}


@pytest.mark.parametrize("command", UPPER)
@pytest.mark.parametrize("arguments", [["--no-such-option"], ["./none"] * 9, ["./none", "\udcff", "--=", "x"]])
def test_a_command_of_the_upper_layers_answers_in_one_line(command: str, arguments: list[str]) -> None:
    """Where torch is not installed it says so."""
    status, err = answer(command, *arguments)
    assert status == 2
    assert err.count("\n") == 1, err
    if importlib.util.find_spec("torch") is None:
        assert f"pip install 'edgediffusion[{command}]'" in err


def test_every_command_is_tried() -> None:
    assert set(COMMANDS) | set(UPPER) >= {"generate", "run", "export", "bench", "pack", "doctor"}


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["--nonsense"], [""], ["\udcff"], ["x" * 5000]])
def test_no_command(arguments: list[str]) -> None:
    status, err = answer(*arguments)
    assert status == 2
    assert "Traceback" not in err
    assert not arguments or err.count("\n") == 1
