"""Help pages: usage, description, and options in panels, laid out the same in a terminal and in a pipe.

Panels are typer's ``rich_help_panel``. Typer's own renderer is not used: it imports rich with Markdown and syntax
highlighting, which takes longer than all else that `dis --help` does.
"""

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Final, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from dis_cli.cli.display.colour import HEADING, LITERAL, PLACEHOLDER, has_colour, painted

WIDEST: Final = 120  # longer lines are hard to follow
NARROWEST: Final = 50
WIDEST_NAMES: Final = 30

_WORD = re.compile(r"(?P<option>(?<!\S)--?[a-z][a-z-]*)|(?P<value>[^\s,/]+)")

# Names of an option, an argument or a command, and what it is for.
Row = tuple[str, str]


class Panel(StrEnum):
    """The panels of options, in the order in which they are shown."""

    COMMANDS = "Commands"
    INPUT = "Input"
    MODEL = "Model"
    REFERENCE = "Reference"
    METRICS = "Metrics"
    ENCODING = "Encoding"
    SAMPLING = "Sampling"
    WORKLOAD = "Workload"
    REPORT = "Report"
    INSPECTION = "Inspection"
    OPTIONS = "Options"
    OUTPUT = "Output"


class _WithPage:
    def get_help(self, ctx: Any) -> str:
        """The page, for standard output."""
        # Typer takes colours away from what is no terminal, FORCE_COLOR or not, unless the context says otherwise.
        ctx.color = has_colour(sys.stdout)
        return page(ctx, sys.stdout)


class HelpCommand(_WithPage, TyperCommand):
    """A command whose help shows its options in panels."""


class WordCommand(HelpCommand):
    """A command that is another one when its first word is one of some."""

    words: ClassVar[Mapping[str, typer.Typer]] = {}

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command that is meant."""
        form = self.form(args)
        if form is not self:
            return form.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def form(self, args: Sequence[str]) -> Any:
        """The command that is meant by the words after this one's name."""
        app = self.words.get(args[0]) if args else None
        return self if app is None else typer.main.get_command(app)


def word_app(command: Callable[..., None]) -> typer.Typer:
    """A command as an application of its own, for `WordCommand.words`."""
    # Completion is installed by `dis` alone.
    settings = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=settings)
    app.command(cls=HelpCommand)(command)
    return app


class HelpGroup(_WithPage, TyperGroup):
    """A group of commands whose help shows their summaries whole."""


def page(ctx: Any, stream: TextIO | None) -> str:
    """The help of a context's command, as wide as the terminal and in colour where ``stream`` takes it."""
    paint = painted if has_colour(stream) else _plain
    command = ctx.command
    width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))
    panels = _panels(ctx)
    commands = _column(panels.get(Panel.COMMANDS, ()))
    options = _column([row for title, rows in panels.items() if title != Panel.COMMANDS for row in rows])
    usage = " ".join([f"Usage: {ctx.command_path}", *command.collect_usage_pieces(ctx)])
    blocks = [
        _wrapped(usage, width, " " * 7),
        *(_wrapped(text, width) for text in _paragraphs(command.help)),
        *(
            [f"{title}:", *_table(rows, commands if title == Panel.COMMANDS else options, width, paint)]
            for title, rows in panels.items()
        ),
        *(_wrapped(text, width) for text in _paragraphs(command.epilog)),
    ]
    titles = re.compile(rf"^({'|'.join(('Usage', 'Example', *panels))}):")
    for block in blocks:
        block[0] = titles.sub(lambda match: paint(match[0], HEADING), block[0])
    return "\n\n".join("\n".join(block) for block in blocks)


def _panels(ctx: Any) -> dict[str, list[Row]]:
    """The rows of each panel that has some, in the order of declaration."""
    panels: dict[str, list[Row]] = {panel: [] for panel in Panel}
    for name, command in getattr(ctx.command, "commands", {}).items():
        panels[Panel.COMMANDS].append((name, "".join(_paragraphs(command.help)[:1])))
    title: str = Panel.OPTIONS
    for parameter in ctx.command.get_params(ctx):
        # The help option comes last, and shares the panel of the one before it.
        title = getattr(parameter, "rich_help_panel", None) or title
        if record := parameter.get_help_record(ctx):
            names = parameter.metavar if parameter.param_type_name == "argument" else record[0]
            # Long names stand below each other, whether there is a short one or not.
            panels[title].append((f"    {names}" if names.startswith("--") else names, record[1]))
    return {title: rows for title, rows in panels.items() if rows}


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n")] if text else []


def _column(rows: Sequence[Row]) -> int:
    """The column of the texts: right of all names that are not too long."""
    return max((len(names) for names, _ in rows if len(names) <= WIDEST_NAMES), default=0) + 4


def _table(rows: list[Row], column: int, width: int, paint: Callable[[str, str], str]) -> list[str]:
    def word(match: re.Match[str]) -> str:
        return paint(match[0], LITERAL if match["option"] else PLACEHOLDER)

    lines: list[str] = []
    for names, text in rows:
        left, right = f"  {_WORD.sub(word, names)}", _wrapped(text, width - column)
        if len(names) > column - 4:
            lines.append(left)
            left = ""
        else:
            left += " " * (column - 2 - len(names))
        lines += [(" " * column if place or not left else left) + line for place, line in enumerate(right)]
    return lines


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _plain(text: str, _style: str) -> str:
    return text
