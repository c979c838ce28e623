"""Names that a shell offers for the values of options. Tables are read without torch."""

from pathlib import Path
from typing import Any

import typer

from dis_cli.diffusion.samplers.table import AUTO, SAMPLERS
from dis_cli.errors import DisError
from dis_cli.metrics.table import words
from dis_cli.models.families import DEFAULT, FAMILIES
from dis_cli.paths import home_path


def preset_words(incomplete: str) -> list[str]:
    """The presets' names."""
    # Imported late: only completion needs it.
    from dis_cli.config.presets import preset_names

    return _beginning(preset_names(), incomplete)


def sampler_words(incomplete: str) -> list[str]:
    """The samplers' names."""
    return _beginning([AUTO, *SAMPLERS], incomplete)


def metric_words(incomplete: str) -> list[str]:
    """A list of metrics with the names that may come next."""
    return next_in_list([*words(), "all"], incomplete)


def device_words(incomplete: str) -> list[str]:
    """The kinds of devices; whether there is one is not looked at, which would import torch."""
    return _beginning(["auto", "cpu", "cuda"], incomplete)


def backbone_words(incomplete: str) -> list[str]:
    """The families' names."""
    return _beginning(FAMILIES, incomplete)


def size_words(ctx: typer.Context, incomplete: str) -> list[str]:
    """The sizes of the family that is asked for."""
    family = FAMILIES.get(ctx.params.get("backbone") or DEFAULT)
    return _beginning(family.sizes, incomplete) if family else []


def class_words(ctx: typer.Context, incomplete: str) -> list[str]:
    """A list of classes of the checkpoint that is named before, with those that may come next."""
    given = [ctx.params.get("ckpt"), *(ctx.params.get("overrides") or ())]
    places = [home_path(str(path)) for path in given if path is not None]
    names = next((found for place in places if (found := _class_names(place))), [])
    return next_in_list([*names, "all"], incomplete)


def step_words(ctx: typer.Context, incomplete: str) -> list[str]:
    """The steps of the checkpoints of the run that is named before."""
    # Imported late: only completion needs it.
    from dis_cli.checkpoints.store import checkpoints_of, steps_in

    run = ctx.params.get("branch")
    try:
        steps = [] if run is None else steps_in(checkpoints_of(home_path(str(run))))
    except DisError:
        return []
    return _beginning(map(str, steps), incomplete)


def next_in_list(names: list[str], incomplete: str) -> list[str]:
    """A list as far as it is typed, with each of the names that its last word begins and that it has not yet."""
    before, comma, word = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _beginning(names, word) if name not in before.split(",")]


def _beginning(names: Any, incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _class_names(path: Path) -> list[str]:
    """The names of a checkpoint's classes, as far as its settings can be read; weights are not."""
    from dis_cli.checkpoints.bundled import place_of
    from dis_cli.checkpoints.portable import is_folder, read_folder_record, read_record
    from dis_cli.checkpoints.store import checkpoints_of, is_checkpoint_folder, list_checkpoints, read_checkpoint

    path = place_of(path)
    try:
        if path.suffix == ".safetensors":
            record = read_record(path)
        elif is_folder(path):
            record = read_folder_record(path)
        else:
            steps = [path] if is_checkpoint_folder(path) else list_checkpoints(checkpoints_of(path))[-1:]
            record = read_checkpoint(steps[0], ()).meta if steps else {}
    except (DisError, OSError):
        # A line that is being typed: what is wrong with it is said when it is run.
        return []
    names = record.get("class_names")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
