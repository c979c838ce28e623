"""What ``--ckpt`` names: weights and the settings saved with them, whatever form they are in."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dis_cli.checkpoints.manifest import MANIFEST, Entries, read_manifest, unreadable
from dis_cli.checkpoints.portable import (
    FOLDER_WEIGHTS,
    Portable,
    has_record,
    parse_torch,
    read_folder_record,
    read_safetensors,
)
from dis_cli.checkpoints.published import Source, check_finite, own_copies, parse_reference
from dis_cli.checkpoints.store import Checkpoint, read_checkpoint, resolve_checkpoint
from dis_cli.checkpoints.torch_file import read_torch_file
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.data.latents.format import VaeRecord, parse
from dis_cli.errors import MismatchError
from dis_cli.models.families import FAMILIES
from dis_cli.runtime.files import sha256_file
from dis_cli.workflows.load.averages import Average, averages_kept, choose_average, choose_held, choose_published
from dis_cli.workflows.load.identity import recorded_images
from dis_cli.workflows.load.locate import Form, form_of, parse_settings, refuse_step, saved_config
from dis_cli.workflows.load.mismatch import check_weights

PUBLISHED_VAE = "stabilityai/sd-vae-ft-ema"


@dataclass(frozen=True)
class SavedModel:
    """Weights that are whole, finite, and of the settings that came with them.

    Attributes:
        form: What they were found in; "published" for a file of the published code.
        path: The checkpoint, file or folder read.
        config: The settings of the run; for a published checkpoint those of the published code.
        held: The decays of all averages that are there, 0 for the weights as they were trained.
        weights: By name, float32 on the CPU.
        step: Optimizer steps it was trained for; None when the file does not say.
        class_names: One name a class; empty when unknown.
        vae: The VAE that its latents are of; None for pixels, or when the checkpoint does not say.
        versions: Package name -> version, of those that wrote it, as far as it says.
        sha256: Of the content: of a checkpoint folder its manifest's, of a published file the file's.
        notes: What the user should know about how it was found.
        images_fingerprint: Of the images it was trained on; None when it does not say.
    """

    form: Form
    path: Path
    config: RunConfig
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
    images_fingerprint: str | None = None

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


def read_saved(path: Path, overrides: Sequence[str] = (), step: int | None = None) -> SavedModel:
    """Read a run folder, a checkpoint folder, a file or folder of `dis checkpoint export`, or a published ``.pt``.

    Args:
        path: One of these; of a run the newest sound checkpoint is read.
        overrides: ``KEY=VALUE`` on the settings saved with it, of which ``sample.ema`` says which weights are read.
        step: The checkpoint of a run to read instead of the newest.

    Raises:
        UsageError: There is no such path, step or average, or an override is wrong.
        CheckpointError: It is damaged, its weights are NaN or infinite, or it cannot be told to be one of these.
        MismatchError: It is sound and of something else, or its weights do not fit the settings saved with them.
        RefusedError: It is made to do harm.
    """
    form = form_of(path)
    if form != "run":
        refuse_step(path, step)
    match form:
        case "run":
            saved = _read_own(path, overrides, step)
        case "folder":
            # It has one more file that may be wrong; the weights' file says it all again.
            read_folder_record(path)
            saved = replace(_of_portable(path, form, read_safetensors(path / FOLDER_WEIGHTS), overrides), path=path)
        case "safetensors":
            saved = _of_portable(path, form, read_safetensors(path), overrides)
        case _:
            content = read_torch_file(path)
            if has_record(content):
                saved = _of_portable(path, form, parse_torch(path, content), overrides)
            else:
                saved = _of_published(path, content, overrides)
    check_finite(saved.path, saved.weights)
    check_weights(saved.path, saved.weights, saved.config)
    return saved


def _read_own(path: Path, overrides: Sequence[str], step: int | None) -> SavedModel:
    average = _average_in(resolve_checkpoint(path, (), step), overrides)
    checkpoint = resolve_checkpoint(path, (average.group,), step)
    # Where the newest weights are damaged it is an older checkpoint, which may have kept its averages in another order.
    own = _average_in(checkpoint, overrides)
    tensors = checkpoint.tensors
    if own.group != average.group:
        tensors = read_checkpoint(checkpoint.path, names=(own.group,)).tensors
    config = saved_config(checkpoint.path, checkpoint.meta)
    groups = _groups(read_manifest(checkpoint.path))
    weights = tensors[own.group]
    return SavedModel(
        form="run",
        path=checkpoint.path,
        config=config,
        average=own,
        held=tuple(decay for decay, group in averages_kept(config).items() if group in groups),
        weights=weights,
        step=checkpoint.step,
        class_names=_class_names(checkpoint.path, checkpoint.meta, config),
        vae=_vae(checkpoint.path, checkpoint.meta),
        versions={},
        dtype=_dtype(weights),
        sha256=sha256_file(checkpoint.path / MANIFEST),
        notes=checkpoint.notes,
        images_fingerprint=recorded_images(checkpoint.meta, config),
    )


def _average_in(checkpoint: Checkpoint, overrides: Sequence[str]) -> Average:
    """Which weights of a checkpoint are asked for; by its settings, and by its files."""
    saved = saved_config(checkpoint.path, checkpoint.meta)
    average = choose_average(saved, apply_overrides(saved, overrides).sample.ema)
    groups = _groups(read_manifest(checkpoint.path))
    if average.group not in groups:
        raise MismatchError(
            f"By its settings `{checkpoint.path}` holds an average of decay {as_text(average.decay)} "
            f"(`{average.group}`), but there are only {', '.join(groups)}",
            "Take another with sample.ema=DECAY, or a later checkpoint of the run",
        )
    return average


def _groups(entries: Entries) -> list[str]:
    return sorted(name.removesuffix(".safetensors") for name in entries if name.endswith(".safetensors"))


def _of_portable(path: Path, form: Form, portable: Portable, overrides: Sequence[str]) -> SavedModel:
    record = portable.record
    config = saved_config(path, record)
    average = choose_held(portable.ema_decay, apply_overrides(config, overrides).sample.ema)
    return SavedModel(
        form=form,
        path=path,
        config=config,
        average=average,
        held=(portable.ema_decay,),
        # Those of a .pt are mapped; of the other forms they are in memory already.
        weights=own_copies(portable.weights) if form == "pt" else _in_float32(portable.weights),
        step=portable.step,
        class_names=_class_names(path, record, config),
        vae=_vae(path, record),
        versions={str(name): str(version) for name, version in record["versions"].items()},
        dtype=_dtype(portable.weights),
        sha256=record["sha256"],
    )


def _of_published(path: Path, content: object, overrides: Sequence[str]) -> SavedModel:
    asked = choose_published(overrides)
    source: Source | None = None if asked is None else "ema" if asked.decay else "model"
    reference = parse_reference(path, content, source)
    kwargs: dict[str, Any] = dict(reference.model_kwargs)
    learn_sigma = kwargs.pop("learn_sigma")
    latent = kwargs["in_channels"] == 4
    settings = {
        "name": "published",
        "model": {"backbone": reference.backbone, **kwargs},
        "diffusion": {"variance": "learned_range" if learn_sigma else "fixed_large"},
        "codec": {"kind": "vae", "vae": PUBLISHED_VAE} if latent else {},
        "data": {"source": "latents" if latent else "folder"},
    }
    config = parse_settings(
        settings,
        f"`{path}` holds a {FAMILIES[reference.backbone].title} model of sizes that this version does not build",
        "`dis presets keys` lists the settings and their bounds",
    )
    decays = {"ema": config.train.ema_decay, "model": 0.0}
    average = choose_average(config, decays[reference.source])
    return SavedModel(
        form="published",
        path=path,
        config=config,
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
    )


def _class_names(path: Path, meta: Mapping[str, Any], config: RunConfig) -> tuple[str, ...]:
    names = meta.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MismatchError(f"The names of classes in `{path}` are no list of names: {names!r:.60}")
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
