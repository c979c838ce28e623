"""A new run that begins with the weights of another model (``--init``)."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dis_cli.checkpoints.store import is_checkpoint_folder, write_checkpoint
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.errors import MismatchError, UsageError, first_of
from dis_cli.events import Event, Note
from dis_cli.models.transfer import TABLES, Transferred, transfer
from dis_cli.runs.folder import RunDir
from dis_cli.training.state import TrainingState
from dis_cli.workflows.cost import model_family, model_shape
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.load.saved import SavedModel, read_saved
from dis_cli.workflows.train.resume import LastState, while_training
from dis_cli.workflows.train.steps import Job

# What the new run's data and training decide, whatever the weights.
_OWN = ("backbone", "image_size", "in_channels", "num_classes", "label_drop", "drop_path", "init", "final_init")
_WARMUP_STEPS = 100
# Names that a message lists.
_MAX_NAMES = 6


def read_init(path: Path, ema: float | None) -> "Init":
    """The model that a run begins with: a run, a checkpoint, an exported model or a published file.

    Args:
        ema: Decay of the weight average to take, of those that a run kept; 0 takes the weights as they were trained.

    Raises:
        UsageError: There is none, or no such average.
        CheckpointError: It is damaged.
        MismatchError: It is of something else.
    """
    overrides = [] if ema is None else [f"sample.ema={as_text(ema)}"]
    saved = read_saved(open_checkpoint(path, overrides))
    saved.require_known()
    # Only where the newest one was asked for.
    run = None if is_checkpoint_folder(path) else saved.run_folder
    told = [] if run is None or saved.step is None else while_training(run, saved.step)
    return Init(saved, (*saved.notes, *told))


def with_model_of(config: RunConfig, saved: SavedModel, typed: Sequence[str]) -> RunConfig:
    """A configuration with another model's architecture, diffusion and codec, where the user typed nothing else.

    The optimizer starts anew, and warms up over the first steps, where the recipe has no warm-up of its own.

    Raises:
        UsageError: Another family was typed.
    """
    given = saved.config
    backbone = given.model.backbone
    if "model.backbone" in typed and config.model.backbone != backbone:
        raise UsageError(
            f"`{saved.path}` holds a {backbone}, the run is to train model.backbone={config.model.backbone}",
            "Leave model.backbone out, or begin without `--init`",
        )
    sections: dict[str, Mapping[str, Any]] = {
        "model": {key: value for key, value in given.model.model_dump().items() if key not in _OWN},
        "diffusion": given.diffusion.model_dump(),
        "codec": given.codec.model_dump(),
        "sample": {"sampler": given.sample.sampler, "steps": given.sample.steps},
    }
    own = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    if config.train.warmup_steps == 0:
        own["train.warmup_steps"] = min(_WARMUP_STEPS, max(1, config.train.steps // 10))
    wanted = [f"{key}={as_text(value)}" for key, value in own.items() if key not in typed and value is not None]
    return apply_overrides(config, [f"model.backbone={backbone}", *wanted])


@dataclass(frozen=True)
class Init:
    """The model whose weights a new run begins with.

    Attributes:
        model: The model.
        notes: Sentences on how it was found.
        step: The step that the run begins after.
    """

    model: SavedModel
    notes: tuple[str, ...] = ()
    step: int = 0

    def lineage(self, _config: RunConfig) -> dict[str, object]:
        """What the run records of it."""
        return {
            "kind": "init",
            "path": str(self.model.path.resolve()),
            "step": self.model.step,
            "ema_decay": self.model.average.decay,
            "sha256": self.model.sha256,
        }

    def check(self, run: RunDir, last: LastState, config: RunConfig) -> None:
        """Refuse to continue a run as if it had begun with a model that it did not begin with.

        Raises:
            MismatchError: It began with another, or with none; or it is new, and nothing of the model fits it.
        """
        if last.checkpoint is None:
            self._require_fit(config)
            return
        before: Any = last.meta.get("lineage") or {}
        if before.get("sha256") != self.model.sha256:
            model = f"`{before['path']}` (sha256 {before['sha256'][:12]})" if before else "no model"
            raise MismatchError(
                f"The run in `{run.path}` began with {model}, and is to be continued with `--init {self.model.path}` "
                f"(sha256 {self.model.sha256[:12]})",
                "Leave `--init` out to continue it, give another folder with `--out DIR`, or start over with `--fresh`",
            )

    def begin(self, job: Job, state: TrainingState, meta: Mapping[str, object]) -> Generator[Event, None]:
        """Give the run its weights, in a checkpoint of step 0; all ranks call this.

        From then on it is continued like any other run, and the model is not needed any more.
        """
        drawn = state.whole_average(0)
        patches = [model_shape(config).num_patches for config in (job.config, self.model.config)]
        classes = job.source.class_names, self.model.class_names
        found = transfer(drawn, self.model.weights, patches=(patches[0], patches[1]), classes=classes)
        groups = {name: found.weights for name in state.tensors() if name != "optimizer"} | {"optimizer": {}}
        state.load(groups if job.process.group.is_leader else None, job.process.group)
        if job.process.group.is_leader:
            write_checkpoint(job.run.checkpoints, 0, groups, meta)
        yield Note(message=told(found, self.model.path))

    def _require_fit(self, config: RunConfig) -> None:
        settings = config.model.model_dump(exclude={"backbone"}) | {"learn_sigma": config.learn_sigma}
        given = {name: tuple(tensor.shape) for name, tensor in self.model.weights.items()}
        shapes = model_family(config).parameter_shapes(**settings)
        # Vectors fit by chance, and tables of classes and positions need no layer of the same width.
        inner = {name: shape for name, shape in shapes.items() if len(shape) > 1 and name not in TABLES}
        if not any(given.get(name) == shape for name, shape in inner.items()):
            raise MismatchError(
                f"Nothing of `{self.model.path}` fits the model of this run: no matrix has the shape that it has there",
                "Leave out the settings of `model.` that differ from it, or begin without `--init`",
            )


def told(found: Transferred, path: Path) -> str:
    """What was taken over, in a few lines."""
    lines = [f"weights of `{path}`: {len(found.copied)} of {len(found.weights)} tensors are copied"]
    lines += found.changed
    if found.drawn:
        lines.append(f"drawn anew: {first_of(found.drawn, _MAX_NAMES)}")
    return "\n  ".join(lines)
