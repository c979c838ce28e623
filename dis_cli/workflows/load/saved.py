"""Saved weights and settings, whatever form ``--ckpt`` names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dis_cli.checkpoints.manifest import unreadable
from dis_cli.checkpoints.portable import (
    FOLDER_WEIGHTS,
    Portable,
    has_record,
    parse_torch,
    read_folder_record,
    read_safetensors,
)
from dis_cli.checkpoints.published import Source, check_finite, own_copies, parse_reference
from dis_cli.checkpoints.store import resolve_checkpoint
from dis_cli.checkpoints.torch_file import read_torch_file
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.config.settings import settings as all_settings
from dis_cli.data.latents.format import VaeRecord, parse
from dis_cli.errors import CheckpointError, MismatchError
from dis_cli.models.families import FAMILIES
from dis_cli.runtime.files import sha256_file
from dis_cli.workflows.load.averages import Average, averages_kept, choose_average, choose_published
from dis_cli.workflows.load.identity import recorded_images
from dis_cli.workflows.load.mismatch import check_weights
from dis_cli.workflows.load.opened import Form, Opened, Settings, parse_settings

PUBLISHED_VAE = "stabilityai/sd-vae-ft-ema"


@dataclass(frozen=True)
class SavedModel:
    """Weights that are whole, finite, and of the settings that came with them.

    Attributes:
        form: Form that they were found in; "published" for a file of the published code.
        path: The checkpoint, file or folder read.
        config: The settings of the run; for a published checkpoint those of the published code.
        asked_config: These with what was asked for instead.
        average: Choice among the checkpoint's weights.
        held: The decays of all averages that are there, 0 for the weights as they were trained.
        weights: By name, float32 on the CPU.
        step: Optimizer steps it was trained for; None when the file does not say.
        class_names: One name a class; empty when unknown.
        vae: The VAE that its latents are of; None for pixels, or when the checkpoint does not say.
        versions: Package name -> version, of those that wrote it, as far as it says.
        sha256: Of the content: of a checkpoint folder its manifest's, of a published file the file's.
        notes: Notes for the user on how it was found.
        unknown: Settings that they were trained with and this version does not have, as KEY=VALUE: images from them
            would not be of the model that they are.
        images_fingerprint: Of the images it was trained on; None when it does not say.
    """

    form: Form
    path: Path
    config: RunConfig
    asked_config: RunConfig
    average: Average
    held: tuple[float, ...]
    weights: dict[str, Tensor]
    step: int | None
    class_names: tuple[str, ...]
    vae: VaeRecord | None
    versions: dict[str, str]
    dtype: str
    sha256: str
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    images_fingerprint: str | None = None

    def require_known(self) -> None:
        """Refuse to sample what was trained with settings that this version does not have.

        Raises:
            MismatchError: It was: names them.
        """
        if self.unknown:
            raise MismatchError(
                f"`{self.path}` holds a published {FAMILIES[self.config.model.backbone].title} that cannot be sampled "
                f"as it was trained: it needs {', '.join(self.unknown)}, which this version does not have",
                "`dis flops --ckpt FILE` counts it",
            )

    @property
    def run_folder(self) -> Path | None:
        """The run that the checkpoint is part of, or None."""
        return run_of(self.form, self.path)

    @property
    def vae_record(self) -> dict[str, Any] | None:
        """The VAE as files have it."""
        return None if self.vae is None else asdict(self.vae)


def run_of(form: Form, path: Path) -> Path | None:
    """The folder of the run that a checkpoint is part of; None when it is of none."""
    # "step-00000100" alone, given inside the folder of checkpoints, has no parents of its own.
    path = path if len(path.parts) > 2 else path.absolute()
    folder = path.parent.parent
    return folder if form == "run" and (folder / "config.toml").exists() else None


def read_saved(opened: Opened) -> SavedModel:
    """Read the weights of what was looked at, and verify them.

    What a training or an export has replaced or deleted since is looked for anew: of a run, the newest sound
    checkpoint is taken.

    Raises:
        CheckpointError: It is damaged, its weights are NaN or infinite, or it cannot be told to be one of these.
        MismatchError: It is sound and of something else, or its weights do not fit the settings saved with them.
        UsageError: There is no such average of its weights.
        RefusedError: It is made to do harm.
    """
    path = opened.place
    match opened.form:
        case "run":
            saved = _read_run(opened)
        case "folder":
            portable = read_safetensors(path / FOLDER_WEIGHTS)
            if portable.record != opened.record:
                # It has one more file that may be wrong.
                read_folder_record(path)
            saved = _of_portable(opened, portable)
        case "safetensors":
            saved = _of_portable(opened, read_safetensors(path))
        case _:
            content = read_torch_file(path)
            if not has_record(content):
                return _of_published(replace(opened, form="published"), content)
            saved = _of_portable(replace(opened, form="pt"), parse_torch(path, content))
    check_finite(saved.path, saved.weights)
    check_weights(saved.path, saved.weights, saved.config)
    return saved


def _read_run(opened: Opened) -> SavedModel:
    assert opened.checkpoint is not None
    group = _group_in(opened)
    try:
        checkpoint = opened.checkpoint.with_groups((group,))
    except CheckpointError:
        # An older one, where the newest weights are damaged, may have kept its averages in another order.
        checkpoint = resolve_checkpoint(opened.named, (group,), opened.asked_step)
        opened = replace(opened, checkpoint=checkpoint)
        group = _group_in(opened)
        if group not in checkpoint.tensors:
            checkpoint = checkpoint.with_groups((group,))
    path, meta = checkpoint.path, checkpoint.meta
    settings = _settings_of(opened)
    weights = checkpoint.tensors[group]
    return SavedModel(
        form="run",
        path=path,
        config=settings.saved,
        asked_config=settings.config,
        average=settings.average,
        held=tuple(decay for decay, kept in averages_kept(settings.saved).items() if kept in checkpoint.groups),
        weights=weights,
        step=checkpoint.step,
        class_names=_class_names(path, meta, settings.saved),
        vae=_vae(path, meta),
        versions={},
        dtype=_dtype(weights),
        sha256=checkpoint.sha256,
        notes=checkpoint.notes,
        images_fingerprint=recorded_images(meta, settings.saved),
    )


def _settings_of(opened: Opened) -> Settings:
    assert opened.settings is not None
    return opened.settings


def _group_in(opened: Opened) -> str:
    """The group of the weights that are asked for; by the settings of a checkpoint, and by its files."""
    assert opened.checkpoint is not None
    average, groups = _settings_of(opened).average, sorted(opened.checkpoint.groups)
    if average.group not in groups:
        raise MismatchError(
            f"By its settings `{opened.checkpoint.path}` holds an average of decay {as_text(average.decay)} "
            f"(`{average.group}`), but there are only {', '.join(groups)}",
            "Take another with sample.ema=DECAY, or a later checkpoint of the run",
        )
    return average.group


def _of_portable(opened: Opened, portable: Portable) -> SavedModel:
    path, record = opened.named, portable.record
    # The record of a .pt is known now; that of another form is another when it was replaced since.
    settings = _settings_of(opened if record == opened.record else replace(opened, record=record))
    return SavedModel(
        form=opened.form,
        path=path,
        config=settings.saved,
        asked_config=settings.config,
        average=settings.average,
        held=(portable.ema_decay,),
        # Those of a .pt are mapped; of the other forms they are in memory already.
        weights=own_copies(portable.weights) if opened.form == "pt" else _in_float32(portable.weights),
        step=portable.step,
        class_names=_class_names(path, record, settings.saved),
        vae=_vae(path, record),
        versions={str(name): str(version) for name, version in record["versions"].items()},
        dtype=_dtype(portable.weights),
        sha256=record["sha256"],
    )


def _of_published(opened: Opened, content: object) -> SavedModel:
    path = opened.named
    asked = choose_published(opened.overrides)
    source: Source | None = None if asked is None else "ema" if asked.decay else "model"
    reference = parse_reference(path, content, source)
    kwargs: dict[str, Any] = dict(reference.model_kwargs)
    learn_sigma = kwargs.pop("learn_sigma")
    latent = kwargs["in_channels"] == 4
    family = FAMILIES[reference.backbone]
    published, unknown = _known(family.published(reference.model_kwargs))
    # Told from the weights, so that these need not be compared with them; what no weight tells has to be asked for.
    untold = {key: value for key in family.untold if (value := _asked_for(opened, f"model.{key}")) is not None}
    variance = "learned_range" if learn_sigma else "fixed_large"
    config = parse_settings(
        {
            "name": "published",
            "model": {"backbone": reference.backbone, **kwargs, **untold},
            "diffusion": {"variance": variance} | published.get("diffusion", {}),
            "codec": {"kind": "vae", "vae": PUBLISHED_VAE} if latent else {},
            "data": {"source": "latents" if latent else "folder"},
            "sample": published.get("sample", {}),
        },
        f"`{path}` holds a {family.title} model of sizes that this version does not build",
        "`dis presets keys` lists the settings and their bounds",
    )
    decays = {"ema": config.train.ema_decay, "model": 0.0}
    average = choose_average(config, decays[reference.source])
    return SavedModel(
        form="published",
        path=path,
        config=config,
        asked_config=apply_overrides(config, opened.overrides),
        average=replace(average, is_default=reference.source == reference.held[0]),
        held=tuple(decays[source] for source in reference.held),
        weights=reference.state_dict,
        step=None,
        class_names=(),
        vae=None,
        versions={},
        dtype=_dtype(reference.state_dict),
        sha256=_sha256_of(path),
        notes=(f"A published checkpoint: its {reference.source} weights, and the published code's diffusion settings",),
        unknown=unknown,
    )


def _known(published: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """The settings of published weights that this version has, by section, and those that it lacks, as KEY=VALUE."""
    known: dict[str, dict[str, Any]] = {}
    unknown: list[str] = []
    for section, values in published.items():
        for leaf, value in values.items():
            setting = all_settings().get(key := f"{section}.{leaf}")
            if setting is None or (setting.choices and value not in setting.choices):
                unknown.append(f"{key}={as_text(value)}")
            else:
                known.setdefault(section, {})[leaf] = value
    return known, tuple(unknown)


def _asked_for(opened: Opened, key: str) -> str | None:
    """What an override sets a key to; None when none does."""
    values = [text for name, _, text in (override.partition("=") for override in opened.overrides) if name == key]
    return values[-1] if values else None


def _class_names(path: Path, meta: Mapping[str, Any], config: RunConfig) -> tuple[str, ...]:
    names = meta.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MismatchError(f"The names of classes in `{path}` are not a list of names: {names!r:.60}")
    count = config.model.num_classes
    if names and count and len(names) != count:
        raise MismatchError(f"`{path}` names {len(names)} classes, and model.num_classes in its settings is {count}")
    return tuple(names)


def _vae(path: Path, meta: Mapping[str, Any]) -> VaeRecord | None:
    record = meta.get("vae")
    try:
        return None if record is None else parse(VaeRecord, record)
    except ValueError as error:
        raise MismatchError(f"The VAE in the settings of `{path}` cannot be read: {error}") from error


def _in_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in weights.items()}


def _dtype(weights: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}))


def _sha256_of(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise unreadable(path, error) from error
