"""Help pages, in process: their panels, their width, their colours."""

import io
import re
import sys
from collections.abc import Iterable, Iterator

import pytest
import typer

from dis_cli.cli.app import app, run
from dis_cli.cli.display.colour import has_colour, with_labels
from dis_cli.cli.display.help import WIDEST, Panel, WordCommand

NAMES = re.compile(r" +(-\w, )?--\S+ \S+$")
CODES = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def words_of(command: object) -> Iterable[str]:
    return command.words if isinstance(command, WordCommand) else ()


def commands() -> Iterator[tuple[str, object]]:
    def below(name: str, command: object) -> Iterator[tuple[str, object]]:
        yield name, command
        inner = {**getattr(command, "commands", {}), **{word: command.form([word]) for word in words_of(command)}}
        for word, each in inner.items():
            yield from below(f"{name} {word}".strip(), each)

    yield from below("", typer.main.get_command(app))


COMMANDS = dict(commands())


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def help_of(name: str, monkeypatch: pytest.MonkeyPatch, columns: int = 80, stream: io.StringIO | None = None) -> str:
    stream = io.StringIO() if stream is None else stream
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stdout", stream)
        assert run([*name.split(), "--help"]) == 0
    return stream.getvalue()


def parameters(command: object) -> list[typer.core.TyperOption | typer.core.TyperArgument]:
    return [parameter for parameter in command.params if not parameter.hidden]


def panels(text: str) -> dict[str, str]:
    """The lines below each title."""
    found = re.split(r"^([A-Z][a-z]+):\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_panel_and_is_shown_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMMANDS[name]
    if hasattr(command, "commands"):
        shown = panels(help_of(name, monkeypatch))
        assert list(shown) == [Panel.COMMANDS, Panel.OPTIONS]
        return
    assert [parameter.opts for parameter in parameters(command) if parameter.rich_help_panel not in set(Panel)] == []
    shown = panels(help_of(name, monkeypatch, columns=120))
    assert list(shown) == [panel for panel in Panel if panel in shown]
    for parameter in parameters(command):
        word = parameter.metavar if parameter.param_type_name == "argument" else max(parameter.opts, key=len)
        assert re.search(rf"^ +(-\w, )?{re.escape(word)}( |$)", shown[parameter.rich_help_panel], re.MULTILINE), word


def test_the_options_of_eval_fid_are_in_five_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(panels(help_of("eval-fid", monkeypatch))) == ["Input", "Reference", "Metrics", "Sampling", "Output"]


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_pages_are_as_wide_as_the_terminal_and_whole(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in COMMANDS.items():
        text = help_of(name, monkeypatch, columns)
        # A name that is longer than the page, such as a list of choices, is not broken.
        long = [line for line in text.splitlines() if len(line) > min(columns, WIDEST) and not NAMES.match(line)]
        assert long == [], name
        words = " ".join(text.split())
        texts = [command.help, *(getattr(parameter, "help", None) for parameter in parameters(command))]
        texts += [inner.help.partition("\n\n")[0] for inner in getattr(command, "commands", {}).values() if inner.help]
        assert [told for told in texts if told and " ".join(told.split()) not in words] == [], name
        assert "Example: dis " in words or hasattr(command, "commands"), name


def test_a_wide_terminal_takes_fewer_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, wide, widest = (help_of("sample", monkeypatch, columns).count("\n") for columns in (80, 120, 300))
    assert wide < narrow
    assert widest == wide


def test_colours_change_no_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "eval-fid", "flops"):
        plain, coloured = help_of(name, monkeypatch), help_of(name, monkeypatch, stream=Terminal())
        assert "\x1b" not in plain
        assert CODES.sub("", coloured) == plain
        assert "\x1b[1;32mUsage:\x1b[0m" in coloured
        assert "\x1b[1;36m--help\x1b[0m" in coloured
    assert "\x1b[1;36m--pixel\x1b[0m / \x1b[1;36m--latent\x1b[0m" in coloured


@pytest.mark.parametrize(
    ("variables", "is_terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": ""}, False, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False, True),
    ],
    ids=str,
)
def test_who_has_colour(variables: dict[str, str], is_terminal: bool, expected: bool, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if is_terminal else io.StringIO()
    assert has_colour(stream) is expected
    assert with_labels("warning: a\nerror: b\nno hint: c", stream) == (
        "\x1b[1;33mwarning:\x1b[0m a\n\x1b[1;31merror:\x1b[0m b\nno hint: c"
        if expected
        else "warning: a\nerror: b\nno hint: c"
    )


def test_a_forced_colour_reaches_a_pipe_and_errors_have_it_too(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["runs", "--help"]) == 0
    assert "\x1b[1;32mInput:\x1b[0m" in capsys.readouterr().out
    assert run(["trian"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("\x1b[1;31merror:\x1b[0m No such command")
    assert "\n\x1b[1;36mhint:\x1b[0m Did you mean" in told


def test_names_in_messages_cannot_colour_or_drive_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["presets", "show", "\x1b[31mred"]) == 2
    assert "\x1b[31m" not in capsys.readouterr().err


def test_the_bare_command_shows_its_help_on_standard_error(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    expected = help_of("", monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    assert run([]) == 2
    assert capsys.readouterr().err == expected
