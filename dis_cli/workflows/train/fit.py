"""Own data and a preset brought together before a run begins: what was found, decided and lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.data.decode import printable
from dis_cli.data.findings import Findings, look_at
from dis_cli.data.images.files import FileSource
from dis_cli.data.latents.format import read_manifest
from dis_cli.data.open import open_source, recognise
from dis_cli.errors import ConfigError
from dis_cli.events import Note

# Data that need not be looked at: what is in them is known.
_KNOWN = {"cifar10": (3, 10), "celeba": (3, 0), "mnist": (1, 10)}
_PREVIEWS = 10


@dataclass(frozen=True)
class Fit:
    """A configuration that fits its data.

    Attributes:
        config: With the kind of the data, and numbers where it said "auto".
        found: What was found, in one line; None of data that were not looked at.
        notes: What is lost, or worth a word, before the first step.
    """

    config: RunConfig
    found: str | None
    notes: tuple[Note, ...]


def fit_to_data(config: RunConfig, typed: Sequence[str], *, is_given: bool, recorded: RunConfig | None = None) -> Fit:
    """Recognise the data of a run, and decide what its preset leaves to them.

    Args:
        typed: Keys that the user set.
        is_given: Whether the user gave the data's path.
        recorded: The settings of the run that is about to be continued: they stay what they are.

    Raises:
        ConfigError: There are no data to decide what the preset leaves open.
        DataError: They cannot be read.
    """
    path = config.data.path
    if path is None:
        if config.open_settings:
            raise ConfigError(
                f"{config.name} is a preset for your own pictures, and no data were given",
                "Give them with `--data PATH` (or data.path=PATH)",
            )
        return Fit(config, None, ())
    usual = config.data.source
    kind = recognise(path, usual) if usual == "auto" or (is_given and "data.source" not in typed) else usual
    notes: list[Note] = []
    if kind != usual:
        config = apply_overrides(config, [f"data.source={kind}", *_consequences(config, kind, typed)])
        if usual not in ("auto", "digits"):
            notes.append(Note(message=f"data.source={kind} in place of {usual}: recognised by `{printable(path)}`"))
    is_open = bool(config.open_settings)
    if is_open and recorded is not None:
        config = config.fitted(in_channels=recorded.model.in_channels, num_classes=recorded.model.num_classes)
    findings = _findings(config, kind) if is_given or is_open else None
    found = None
    if isinstance(findings, Findings):
        found = findings.told()
        config = config.fitted(in_channels=3 if findings.has_colour else 1, num_classes=len(findings.class_names))
        lost = findings.lost(channels=config.pixel_channels, num_classes=config.model.num_classes)
        notes += [Note(message="; ".join(lost), level="warning")] if lost else []
        prepared = findings.prepared(pixel_size=config.pixel_size, background=config.data.background)
        notes += [Note(message="; ".join(prepared))] if prepared else []
    elif findings is not None:
        channels, num_classes = findings
        config = config.fitted(in_channels=channels, num_classes=num_classes)
    if is_open and "train.preview_every" not in typed:
        # Whoever trains on own pictures wants to see some.
        config = apply_overrides(config, [f"train.preview_every={max(1, config.train.steps // _PREVIEWS)}"])
    return Fit(config, found, tuple(notes))


def _consequences(config: RunConfig, kind: str, typed: Sequence[str]) -> list[str]:
    """What else another kind of data changes."""
    if config.data.source == "digits" and config.evaluate.features == "digits":
        # They say nothing about other images.
        return ["evaluate.features=auto"]
    if kind == "latents" and config.codec.kind == "pixel" and config.open_settings:
        settings = read_manifest(config.data.path or Path()).settings
        _, side, _ = settings.latent_shape
        own = {
            "codec.kind": "vae",
            "codec.scale": settings.scale,
            "codec.downsample": settings.image_size // side,
            "model.image_size": side,
            "model.patch_size": 2 if side >= 16 else 1,
        }
        return [f"{key}={value}" for key, value in own.items() if key not in typed]
    return []


def _findings(config: RunConfig, kind: str) -> Findings | tuple[int, int] | None:
    """Findings about the images, or the channels and classes where these are known; None of data not looked at."""
    path = config.data.path
    assert path is not None
    if kind in _KNOWN:
        return _KNOWN[kind]
    if not config.open_settings and kind in ("latents", "imagenet"):
        return None
    if kind == "latents":
        settings = read_manifest(path).settings
        return settings.latent_shape[0], len(settings.class_names)
    source = open_source(kind, path, image_size=config.assumed().pixel_size, channels=config.assumed().pixel_channels)
    return look_at(source.files) if isinstance(source, FileSource) else None
