"""The name, the conditions and the record of a result of sampling."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dis_cli.config.schema import RunConfig
from dis_cli.diffusion.samplers.table import VERSION
from dis_cli.errors import DisError, UsageError
from dis_cli.runtime.files import numbered
from dis_cli.runtime.precision import Precision
from dis_cli.runtime.targets import FILE_SUFFIXES, is_folder, require_writable, without_ending
from dis_cli.version import __version__
from dis_cli.workflows.build import build_guidance, build_sampler, pick_precision
from dis_cli.workflows.load.mismatch import TRAINING_ONLY
from dis_cli.workflows.load.model import LoadedModel
from dis_cli.workflows.sample.output import Format, Trajectory, read_facts
from dis_cli.workflows.sample.requests import as_ranges, file_labels
from dis_cli.workflows.sample.unfinished import UnfinishedSamples

# What may differ between the starts that make one result. Earlier versions noted the trajectory.
_INFORMATION = ("dis", "trajectory")

_FORMS: dict[str, Format] = {".npz": "npz", ".zip": "zip"}


def choose_sample_precision(out: Path, config: RunConfig, device: torch.device) -> Precision:
    """The precision of the images that are finished, when the choice is left to the machine."""
    there = read_facts(out) or UnfinishedSamples(out).facts()
    if there is not None and config.sample.precision == "auto" and there.get("precision") in ("fp32", "bf16"):
        return Precision(str(there["precision"]), "as for the images that are finished")
    return pick_precision(config.sample.precision, config, device)


def default_path(loaded: LoadedModel, seeds: str, num_images: int, classes: list[int], form: Format) -> Path:
    """The default place of samples: the run's ``samples`` (or ./samples), under a name that describes them."""
    root = loaded.saved.run_folder / "samples" if loaded.saved.run_folder else Path("samples")
    sample = loaded.config.sample
    origin = loaded.saved.path.stem if loaded.saved.step is None else f"step-{loaded.saved.step:08d}"
    # A list of many seeds would be too long for a name.
    seeds = seeds if len(seeds) <= 40 else f"{seeds[:37]}..."
    parts = [origin, sample.sampler.replace("+", "p"), f"{sample.steps}", seeds, f"n-{num_images}"]
    if sample.cfg_scale != 1:
        parts.append(f"cfg-{sample.cfg_scale:g}")
    parts += (*sample.name_parts, *loaded.saved.average.name_parts)
    parts += [sample.precision] if sample.precision == "bf16" else []
    if classes:
        all_of_them = classes == list(range(loaded.config.model.num_classes))
        labels = file_labels(loaded.saved.class_names, loaded.config.model.num_classes)
        told = "-".join(labels[place] for place in classes[:8])
        # A list of long names would be too long for a name.
        told = told if len(told) <= 60 else "-".join(map(str, classes[:8]))
        parts.append("class-all" if all_of_them else f"class-{told}")
    return root / ("_".join(parts) + ("" if form == "png" else f".{form}"))


def free_place(usual: Path, facts_at: Callable[[Path], dict[str, object]]) -> Path:
    """The default place, or where other samples are a name beside it: all stay that there are.

    Args:
        facts_at: Conditions of the samples there.
    """
    for path in numbered(usual):
        try:
            there = read_facts(path) or UnfinishedSamples(path).facts()
        except DisError:
            continue
        if there is None or compared(there) == compared(json.loads(json.dumps(facts_at(path)))):
            return path
    raise AssertionError("names never end")


def choose_form(
    form: Format | None, out: Path | None, trajectory: Trajectory | None, *, option: str = "--out"
) -> Format:
    """The form asked for, by its name or by the ending of the path, once it is known that it can be written there.

    Raises:
        UsageError: They contradict each other, the path is of something else, or a trajectory has no folder to be in.
        StorageError: The path cannot be written.
    """
    told = None if out is None else _FORMS.get(out.suffix.lower())
    if form is not None and told is not None and form != told:
        raise UsageError(
            f"`--format {form}` contradicts `{option} {out}`", "Leave `--format` out, or name another file"
        )
    chosen: Format = form or told or "png"
    if out is not None and chosen == "png" and out.suffix.lower() in FILE_SUFFIXES and not is_folder(out):
        raise UsageError(
            f"`{option}`: got `{out}`, allowed: a name that ends in .npz or .zip, or in neither for a folder of PNGs",
            f"Give `{option} {without_ending(out)}`",
        )
    if out is not None and chosen != "png" and told is None:
        raise UsageError(
            f"`--format {chosen}` writes one file, but `{out}` does not end in .{chosen}",
            f"Give `{option} {out}.{chosen}`",
        )
    if out is not None:
        require_place(out, chosen, option=option)
    if trajectory is not None and chosen != "png":
        raise UsageError(f"`--trajectory` needs a folder of PNGs, but the format is {chosen}", "Give `--format png`")
    return chosen


def require_place(out: Path, form: Format, *, option: str = "--out") -> None:
    """Refuse a path that the result, or what is kept beside it meanwhile, cannot be written to.

    Raises:
        UsageError: Something of another kind is there.
        StorageError: The operating system does not allow it.
    """
    require_writable(out, "folder" if form == "png" else "file", suffixes=_FORMS, option=option)
    require_writable(UnfinishedSamples(out).path, "filled folder", option=option)


def all_facts(
    loaded: LoadedModel,
    precision: Precision,
    seeds: Sequence[int],
    classes: Sequence[int],
    form: Format,
    *,
    compiled: bool,
) -> dict[str, object]:
    """All that the result's bytes depend on."""
    config: RunConfig = loaded.config
    facts: dict[str, object] = {
        "dis": __version__,
        "checkpoint_sha256": loaded.saved.sha256,
        "step": loaded.saved.step,
        "ema_decay": loaded.saved.average.decay,
        "seeds": as_ranges(seeds),
        "classes": as_ranges(classes) if classes else None,
        "format": form,
        "sample": config.sample.model_dump(mode="json", exclude={"batch_size", "precision", "ema"}),
        "samplers": VERSION,
        "diffusion": config.diffusion.model_dump(mode="json", exclude=set(TRAINING_ONLY)),
        "engine": loaded.engine.name,
        "precision": precision.name,
        "compiled": compiled,
    }
    if config.codec.kind == "vae":
        facts["codec"] = config.codec.model_dump(mode="json")
    return facts


def sample_settings(
    loaded: LoadedModel, facts: dict[str, object], seeds: Sequence[int], classes: Sequence[int]
) -> dict[str, object]:
    """The part of ``samples.json`` before its list of images."""
    timesteps = build_sampler(loaded.config).timesteps
    return {
        "schema": 1,
        "checkpoint": str(loaded.saved.path),
        "step": loaded.saved.step,
        "ema_decay": loaded.saved.average.decay,
        "seed": seeds[0],
        "num_images": len(seeds),
        "classes": list(classes) or None,
        "sample": loaded.config.sample.model_dump(mode="json", exclude={"batch_size"}),
        "engine": facts["engine"],
        "precision": facts["precision"],
        "format": facts["format"],
        "image_size": loaded.config.pixel_size,
        "model_evaluations": len(timesteps),
        "guided_evaluations": build_guidance(loaded.config).count_guided(timesteps),
        "facts": facts,
    }


def compared(facts: dict[str, object]) -> dict[str, object]:
    """The facts that must be the same when a result is continued."""
    return {key: value for key, value in facts.items() if key not in _INFORMATION}
