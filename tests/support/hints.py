"""What the product tells a user to type, found in its sources, and whether it is understood when it is typed.

Looked at are all texts of the package, the examples of the commands' help, the READMEs, the Makefile and the presets.
In them, what is typed is a command (`dis ...`), an option, a setting with or without a value, or a variable DIS_*.
Words in capitals stand for values. What a file's texts name has to exist for every command of RAISED_BY; texts of
other files may name what any command has. "`--vae DIR` (or codec.vae=DIR)" is for both kinds of commands.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from dis_cli.cli.app import app
from dis_cli.cli.hints.fitted import Taken, command_of, fitted, taken_by
from dis_cli.config.backbones import BACKBONES
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import preset_names
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import section_names, settings
from dis_cli.config.sweep import SHORT_KEYS
from dis_cli.errors import ConfigError, DisError

ROOT = Path(__file__).parents[2]

TRAIN, SAMPLE, ENCODE, SCORE, STATS = "train", "sample", "encode-latents", "eval-fid", "eval-fid stats"

# The commands that show what a file, or a folder of files, says; the longest entry counts.
RAISED_BY = {
    "cli/train.py": (TRAIN,),
    "cli/sample.py": (SAMPLE,),
    "cli/encode_latents.py": (ENCODE,),
    "cli/eval_fid.py": (SCORE,),
    "cli/eval_fid_stats.py": (STATS,),
    "cli/flops.py": ("flops",),
    "codecs/": (TRAIN, SAMPLE, SCORE, ENCODE),
    "config/sampling.py": (TRAIN, SAMPLE, SCORE),
    "config/sweep.py": (SCORE,),
    "data/": (TRAIN, SCORE, STATS, ENCODE),
    "data/findings.py": (TRAIN,),
    "data/latents/source.py": (TRAIN,),
    "data/latents/format.py": (TRAIN, ENCODE),
    "metrics/": (SCORE, STATS),
    "metrics/extractors/locate.py": (TRAIN, SCORE, STATS),
    "runtime/device.py": (TRAIN, SAMPLE, SCORE, STATS, ENCODE, "flops", "doctor"),
    "training/": (TRAIN,),
    "data/latents/agreement.py": (TRAIN, ENCODE),
    "workflows/flops/model.py": ("flops",),
    "workflows/eval_fid/bounds.py": (SCORE,),
    "workflows/build.py": (TRAIN, SAMPLE, SCORE),
    "data/images/verify.py": (TRAIN, ENCODE),
    "workflows/sample/requests.py": (SAMPLE,),
    "workflows/encode_latents.py": (TRAIN, ENCODE),
    "workflows/eval_fid/evaluate.py": (SCORE,),
    "workflows/checkpoint/export.py": ("checkpoint export",),
    "workflows/flops/report.py": ("flops",),
    "workflows/flops/timing.py": ("flops",),
    "workflows/checkpoint/import_model.py": ("checkpoint import",),
    "workflows/latents.py": (ENCODE,),
    "workflows/eval_fid/references.py": (SCORE,),
    "workflows/load/opened.py": (SAMPLE, SCORE),
    "workflows/train/resume.py": (TRAIN,),
    "workflows/sample/sample.py": (SAMPLE,),
    "workflows/sample/facts.py": (SAMPLE,),
    "workflows/sample/output.py": (SAMPLE, SCORE),
    "workflows/eval_fid/result.py": (SCORE,),
    "workflows/eval_fid/scorer.py": (SCORE,),
    "metrics/scores.py": (SCORE,),
    "workflows/eval_fid/stats.py": (STATS,),
    "workflows/train/branch.py": (TRAIN,),
    "workflows/train/fork.py": (TRAIN,),
    "workflows/train/init.py": (TRAIN,),
    "workflows/train/shares.py": (TRAIN,),
    "workflows/train/steps.py": (TRAIN,),
    "runs/trackers.py": (TRAIN,),
    "workflows/train/train.py": (TRAIN,),
    "workflows/sample/unfinished.py": (SAMPLE, SCORE),
}

# What an f-string fills in.
_GAP = "\N{REPLACEMENT CHARACTER}"
_WORD = re.compile(rf"[A-Z][A-Z0-9_./:,]*(\.[a-z]+)?|.*{_GAP}.*|.*\.\.\..*|\$.*|\{{.*\}}|i/n|x")
# Those of torchrun, which the examples put in front.
_TORCHRUN = {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint"}
_FILES = (".pkl", ".json", ".toml", ".py")


_COMMAND = re.compile(r"(?:torchrun .*-m dis_cli|dis)(?: .*)?")
_EXAMPLE = re.compile(r"^(?:\w+ {2,}|.*: |\$ )?((?:torchrun .*-m dis_cli|dis) \S.*)$", re.MULTILINE)
_LOOKS_TYPED = re.compile(r"(?<![\w-])--?[a-z]|\bdis |[a-z]\.[a-z]|=|DIS_")
_BACKTICKS = re.compile(r"`([^`\n]+)`")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*)(?![\w-])")
_SETTING = re.compile(rf"(?<![\w./-])((?:{'|'.join(section_names())})\.[a-z_0-9]+)(?![\w.(/])(?:=([^\s`;)]+))?")
_TOP_SETTING = re.compile(r"(?<![\w./-])((?:seed|engine|name)=[^\s`;),]+)")
_VARIABLE = re.compile(r"(?<![A-Z_])DIS_[A-Z_]+")


@dataclass(frozen=True)
class Text:
    """Words that a user may read, and where they stand."""

    file: str
    line: int
    words: str

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that show them; empty where any may."""
        if self.file.endswith(".md"):
            return ()
        inner = self.file.removeprefix("dis_cli/")
        fitting = [name for name in RAISED_BY if inner.startswith(name)]
        return RAISED_BY[max(fitting, key=len)] if fitting else ()


def texts(root: Path = ROOT) -> Iterator[Text]:
    """Everything that a checkout tells a user."""
    for path in sorted((root / "dis_cli").rglob("*.py")):
        yield from _of_python(path, path.relative_to(root).as_posix())
    pages = (path.relative_to(root).as_posix() for path in sorted((root / "dis_cli").rglob("README.md")))
    presets = (f"presets/{name}.toml" for name in preset_names())
    for name in ("README.md", "presets/README.md", "Makefile", *pages, *presets):
        if (root / name).is_file():
            yield from _of_page(root / name, name)


def problems_of(text: Text) -> list[str]:
    """What would not be understood of all that a text names; each with the place and a remedy."""
    found: list[str] = []
    if not _LOOKS_TYPED.search(text.words):
        return found
    for name in text.commands or ("",):
        words = fitted(text.words, _taken(name)) if name else text.words
        allowed = {name, *(other for other in _commands() if re.search(rf"(?<![\w-]){other}(?![\w-])", words))}
        found += [
            f"{text.file}:{text.line}: {problem}" for problem in _problems(words, allowed if name else set(_commands()))
        ]
    return list(dict.fromkeys(found))


def check_command(line: str) -> str | None:
    """What is wrong with a command line ``dis ...``, or one behind ``torchrun``; None when the parser takes it."""
    line = re.split(r"\s+#|\s[|&>]|\\$", line)[0].replace("[", "").replace("]...", "").replace("]", "")
    try:
        words = shlex.split(line)
    except ValueError as error:
        return f"`{line}` is no command line: {error}"
    start = words.index("dis_cli") if "dis_cli" in words else 0
    arguments = [word for word in words[start + 1 :] if word not in ("--help", "-h", "--version")]
    name, command = command_of(_root(), arguments)
    rest = arguments[len(name.split()) :]
    if not name and rest and not _WORD.fullmatch(rest[0].rstrip(",")):
        return f"`{line}`: there is no command `{rest[0]}`"
    if not name or not rest:
        # The name of a command.
        return None
    try:
        context = command.make_context(name, _filled(rest, command))
    except typer.TyperException as error:
        return f"`{line}`: {error.format_message()}"
    except DisError as error:
        return f"`{line}`: {error.message}"
    preset = context.params.get("preset") or ""
    if preset.startswith("dis-") and preset not in preset_names():
        return f"`{line}`: there is no preset `{preset}`"
    axes = SHORT_KEYS if "--sweep" in rest else ()
    given = [text for text in context.params.get("overrides") or () if text.partition("=")[0] not in axes]
    return next((problem for text in given if (problem := check_setting(text))), None)


def check_setting(text: str) -> str | None:
    """What is wrong with a setting, with or without a value; None when it is one."""
    key, equals, value = text.partition("=")
    value = value.strip("'\"").rstrip(".,:")
    if key == "KEY":
        return None
    if not any(key in settings(backbone) for backbone in BACKBONES):
        return f"`{key}` is no setting"
    if not equals or _WORD.fullmatch(value):
        return None
    try:
        owner = next(name for name in BACKBONES if key in settings(name))
        apply_overrides(RunConfig(model=BACKBONES[owner](backbone=owner)), [f"{key}={value}"])
    except ConfigError as error:
        # Rules between settings depend on the others.
        return error.message if error.message.startswith(f"`{key}`: got") else None
    return None


def _problems(words: str, allowed: set[str]) -> Iterator[str]:
    for line in _EXAMPLE.findall(words) if "`" not in words else ():
        yield from filter(None, [check_command(line)])
    for quoted in _BACKTICKS.findall(words):
        if _COMMAND.fullmatch(quoted):
            yield from filter(None, [check_command(quoted)])
        elif re.fullmatch(r"--?[a-z].*", quoted):
            yield from filter(None, [_check_option(quoted, allowed)])
    # Other programs have options of their own.
    bare = _EXAMPLE.sub("", _BACKTICKS.sub(_without_programs, words))
    for option in set(_OPTION.findall(bare)) - _TORCHRUN:
        yield from filter(None, [_check_option(option, allowed)])
    given = [f"{key}={value}" if value else key for key, value in _SETTING.findall(bare) if not key.endswith(_FILES)]
    for setting in (*given, *_TOP_SETTING.findall(bare)):
        yield from filter(None, [check_setting(setting)])
        if "=" in setting and not any(_taken(name).settings for name in allowed):
            yield f"`{setting}` is not understood by `dis {'`, `dis '.join(sorted(allowed))}`: name its option"
    for variable in set(_VARIABLE.findall(words)) - _variables():
        yield f"nothing reads the variable {variable}"


def _without_programs(match: re.Match[str]) -> str:
    is_typed_here = re.match(r"--?[a-z]|[a-z_]+\.?[a-z_]*=|[a-z]+\.[a-z_]+$", match[1])
    return match[1] if is_typed_here else ""


def _check_option(text: str, allowed: set[str]) -> str | None:
    option, _, value = text.replace("=", " ", 1).partition(" ")
    having = [name for name in sorted(allowed) if option in _taken(name).options]
    if not having:
        few = f"`dis {'`, `dis '.join(sorted(allowed))}`" if len(allowed) < len(_commands()) else "any command"
        return f"`{option}` is no option of {few}: name a setting, or the command that has the option"
    if not value or _WORD.fullmatch(value):
        return None
    choices = [_choices(_options(name).get(option)) for name in having]
    if all(kinds and value.split()[0] not in kinds for kinds in choices):
        return f"`{option}` does not take `{value}`"
    return None


def _of_python(path: Path, file: str) -> Iterator[Text]:
    tree = ast.parse(path.read_text())
    hidden: set[int] = set()
    for node in ast.walk(tree):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_documented and node.body and isinstance(node.body[0], ast.Expr):
            is_help = file.startswith("dis_cli/cli/") and isinstance(node, ast.FunctionDef)
            if not (is_help and not node.name.startswith("_")):
                hidden.add(id(node.body[0].value))
        if isinstance(node, ast.JoinedStr):
            hidden |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else _GAP for part in node.values]
            yield Text(file, node.lineno, "".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(file, node.lineno, re.sub(r"\n +", "\n", node.value))


def _of_page(path: Path, file: str) -> Iterator[Text]:
    is_code = False
    content = path.read_text().replace("\\\n", " ")
    for number, line in enumerate(content.splitlines(), start=1):
        is_code ^= line.startswith("```")
        if file == "Makefile":
            line = re.sub(r"\$\((\w+)\)", _GAP, line.replace("$(BIN)/dis", "dis"))
            for words in re.findall(r'(?:^\t|")(dis [^"]*)', line):
                yield Text(file, number, words)
        elif is_code:
            yield Text(file, number, re.sub(r"^(\$ )?(\.venv/bin/)?", "", line) if "dis" in line else "")
        else:
            for quoted in _BACKTICKS.findall(line):
                yield Text(file, number, f"`{quoted}`")


@cache
def _root() -> Any:
    return typer.main.get_command(app)


@cache
def _commands() -> dict[str, Any]:
    """Every command by its name."""
    found: dict[str, Any] = {}

    def add(prefix: str, group: Any) -> None:
        for name, command in getattr(group, "commands", {}).items():
            found[f"{prefix}{name}"] = command
            add(f"{prefix}{name} ", command)

    add("", _root())
    name, command = command_of(_root(), ["eval-fid", "stats"])
    return found | {name: command, "dis": _root()}


@cache
def _taken(name: str) -> Taken:
    return taken_by(name, _commands()[name])


@cache
def _options(name: str) -> dict[str, Any]:
    return _options_of(_commands()[name])


def _options_of(command: Any) -> dict[str, Any]:
    return {option: one for one in command.params for option in one.opts}


def _choices(option: Any) -> tuple[str, ...]:
    """The words that an option takes; none where it takes any."""
    annotation = None if option is None else option.type_descriptor.annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _filled(arguments: list[str], command: Any) -> list[str]:
    """The arguments with a value in place of each word in capitals."""
    options = _options_of(command)
    filled: list[str] = []
    before = ""
    for word in arguments:
        if _WORD.fullmatch(word) and not word.startswith("-"):
            filled.append(next(iter(_choices(options.get(before))), "2"))
        else:
            filled.append(word)
        before = word
    return filled


@cache
def _variables() -> set[str]:
    """The variables that the package reads."""
    read: set[str] = set()
    for path in (ROOT / "dis_cli").rglob("*.py"):
        content = path.read_text()
        read |= set(re.findall(r"""environ(?:\.get\(|\.setdefault\(|\[)["'](DIS_[A-Z_]+)""", content))
        read |= set(re.findall(r"""^_?[A-Z_]+(?:: \S+)? = ["'](DIS_[A-Z_]+)["']$""", content, re.MULTILINE))
    return read
