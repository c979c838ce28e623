"""The command ``dis``: its commands, and the one place where a failure becomes a message and an exit status."""

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from dis_cli.cli import checkpoint, presets
from dis_cli.cli.display import output
from dis_cli.cli.display.help import HelpCommand, HelpGroup
from dis_cli.cli.doctor import doctor
from dis_cli.cli.encode_latents import encode_latents
from dis_cli.cli.eval_fid import ScoreCommand, eval_fid
from dis_cli.cli.flops import flops
from dis_cli.cli.hints.fitted import command_of, encode_option, fitted, taken_by, taken_in
from dis_cli.cli.hints.other_options import answer
from dis_cli.cli.options import JsonLinesCommand
from dis_cli.cli.report import report
from dis_cli.cli.runs.list import RunsCommand, runs
from dis_cli.cli.sample import sample
from dis_cli.cli.train import train
from dis_cli.errors import (
    DisError,
    Interrupted,
    StorageError,
    UsageError,
    did_you_mean,
    first_line,
    is_limit,
    is_out_of_memory,
)
from dis_cli.runtime.openmp import limit_spinning
from dis_cli.version import __version__

BROKEN_PIPE_STATUS = 128 + 13  # what a shell reports for SIGPIPE

# What needs less memory, by command.
_LESS_MEMORY = {
    "train": "Compute a batch in parts (train.accumulation=4), or make it (train.batch_size), the images "
    "(model.image_size) or the model smaller in a new run",
    "sample": "Generate fewer images at a time (sample.batch_size=1)",
    "eval-fid": "Generate fewer images at a time (sample.batch_size=1)",
    "encode-latents": "Encode fewer images at a time (`--batch-size 1`)",
}

app = typer.Typer(
    name="dis",
    cls=HelpGroup,
    help="Train, sample and score DiS: diffusion models with a state space backbone (arXiv 2402.05608).",
    epilog="Start with `dis train --preset dis-xs-digits`: it needs no data, no network and no GPU.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", cls=JsonLinesCommand)(train)
app.command("sample", cls=HelpCommand)(sample)
app.command("encode-latents", cls=HelpCommand)(encode_latents)
app.command("eval-fid", cls=ScoreCommand)(eval_fid)
app.command("runs", cls=RunsCommand)(runs)
app.command("report", cls=HelpCommand)(report)
app.command("flops", cls=HelpCommand)(flops)
app.command("doctor", cls=HelpCommand)(doctor)
app.add_typer(presets.app, name="presets")
app.add_typer(checkpoint.app, name="checkpoint")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    # No docstring: typer would take it for the help.
    if version:
        output.result([f"dis {__version__}"], {}, as_json=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        output.help_page(context)
        raise typer.Exit(UsageError.exit_code)


def main() -> NoReturn:
    """Run ``dis`` on this process's arguments and exit with its status."""
    limit_spinning()
    status = run(sys.argv[1:])
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            # Told already; what is still buffered would fail again, loudly, when the interpreter flushes it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run ``dis`` with these arguments, print what fails as ``error:`` and ``hint:``, and return the exit status."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    output.start()
    try:
        return _invoke(arguments)
    except BaseException as exception:
        if isinstance(exception, SystemExit):
            raise
        if isinstance(exception, BrokenPipeError) and _reader_is_gone():
            # It has what it wanted, as in `dis flops | head -1`.
            return BROKEN_PIPE_STATUS
        if os.environ.get("DIS_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        failure = explain(exception, options)
        form = next((option for option in reversed(options) if option in ("--json", "--json=lines")), None)
        output.error(failure, form == "--json", json_lines=form == "--json=lines")
        return failure.code


def _reader_is_gone() -> bool:
    # Asked of the system, because pipes to other processes, such as data loaders, break too.
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):
        # Closed from the start, or not a file.
        return False
    return bool(poll.poll(0))


def _invoke(arguments: Sequence[str]) -> int:
    command = typer.main.get_command(app)
    if "_DIS_COMPLETE" in os.environ:
        # A shell asks for completions; typer answers and exits.
        command.main(list(arguments), prog_name="dis")
    try:
        # Not command.main(): it would turn KeyboardInterrupt and broken pipes into statuses and messages of its own.
        with command.make_context("dis", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def _as_typed(failure: DisError, arguments: Sequence[str]) -> DisError:
    """The error in words that the command takes when they are typed."""
    taken = taken_by(*command_of(typer.main.get_command(app), arguments))
    failure.message = fitted(failure.message, taken)
    failure.hint = failure.hint and fitted(failure.hint, taken)
    return failure


def explain(exception: BaseException, arguments: Sequence[str] = ()) -> DisError:
    """The error to show for whatever a command raised that was called with these arguments."""
    match exception:
        case DisError():
            return _as_typed(exception, arguments)
        case typer.TyperException():
            return _usage_error(exception, arguments)
        case KeyboardInterrupt() | typer.Abort():
            return Interrupted("Interrupted", signal.SIGINT)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EROFS):
            return StorageError(
                _os_error_text(exception), "Free some space or write elsewhere; nothing finished is lost"
            )
        case _ if is_limit(exception):
            return DisError(
                f"The system allows no more open files, processes or threads: {first_line(exception, 'no message')}",
                "Raise the limits (`ulimit -n` for files, `ulimit -u` for processes and threads) or end other "
                "programs. What was saved before is unharmed",
            )
        case OSError(filename=name) if name is not None:
            return StorageError(_os_error_text(exception))
        case _ if is_out_of_memory(exception):
            return DisError(
                f"Out of memory: {first_line(exception, 'no message')}",
                f"{_LESS_MEMORY.get(next(iter(arguments), ''), 'Take a smaller model')}. Other programs may be using "
                "the same memory. What was saved before is unharmed",
            )
        case _:
            return DisError(
                f"unexpected {type(exception).__name__}: {first_line(exception, 'no message')}",
                "This is a bug: set DIS_DEBUG=1 for the traceback, and please report it",
            )


def _usage_error(exception: typer.TyperException, arguments: Sequence[str]) -> UsageError:
    # Typer 0.29 carries click inside itself, as typer._click; TyperException is the public base of its errors. The
    # attributes read here (ctx, option_name, possibilities) belong to private subclasses and may be missing.
    context: typer.Context | None = getattr(exception, "ctx", None)
    message, _, suggestion = exception.format_message().partition(" Did you mean ")
    hints = [f"See `{context.command_path if context else 'dis'} --help`"]
    if hasattr(exception, "possibilities"):
        # Without the list of options that format_message() appends.
        message = exception.message
        hints[:0] = _option_hints(getattr(exception, "option_name", ""), context, arguments)
    elif suggestion:
        hints.insert(0, f"Did you mean `{suggestion.rstrip('?').split(', ')[0][1:-1]}`?")
    elif context and message.startswith("Got unexpected extra argument"):
        hints[:0] = _setting_hints(message, context)
    return UsageError(message.strip().rstrip(".") + _value_got(exception.__cause__), " ".join(hints))


def _value_got(cause: BaseException | None) -> str:
    # Typer converts by pydantic, whose message names the bound and not the value. Imported late: it takes a while.
    if cause is None:
        return ""
    from pydantic import ValidationError

    return f", got `{cause.errors()[0]['input']}`" if isinstance(cause, ValidationError) else ""


def _option_hints(option: str, context: typer.Context | None, arguments: Sequence[str]) -> list[str]:
    """Suggestions for an option that does not exist."""
    if len(option) == 2:
        # Of `-lr 3e-4` the parser names `-l` only.
        option = next((word for word in arguments if word.startswith(option)), option).partition("=")[0]
    taken = taken_in(context)
    if found := answer(option, taken):
        return [found]
    # Without the dashes, which would make short names alike.
    close = did_you_mean(option.lstrip("-"), [name[2:] for name in sorted(taken.options) if name.startswith("--")])
    if close:
        return [f"Did you mean `--{close}`?"]
    return _key_hints(option) if taken.settings else []


def _key_hints(option: str) -> list[str]:
    # `--drop-path 0.1` is what other programs of this kind take.
    from dis_cli.config.settings import settings

    leaf = option.lstrip("-").replace("-", "_")
    keys = [f"`{key}=VALUE`" for key in settings() if key.rpartition(".")[2] == leaf]
    return [f"Settings are given as KEY=VALUE: {' or '.join(keys)}."] if keys else []


def _setting_hints(message: str, context: typer.Context) -> list[str]:
    """The option to give instead of a KEY=VALUE, for a command without settings."""
    # "Got unexpected extra argument(s) (data.on_bad=skip)."
    given = message.rpartition("(")[2].rstrip(".)").split()
    taken = taken_in(context)
    if taken.settings or not given or "=" not in given[0]:
        return []
    option = encode_option(given[0]) if taken.name == "encode-latents" else None
    return [f"Write {option}." if option else f"`dis {taken.name}` takes options only, no KEY=VALUE."]


def _os_error_text(error: OSError) -> str:
    where = f": `{os.fsdecode(error.filename)}`" if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    return f"{error.strerror or type(error).__name__}{where}"
