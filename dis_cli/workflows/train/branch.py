"""A new run that continues the whole state of another with other settings (``--branch``)."""

import shlex
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dis_cli.checkpoints.store import Checkpoint, write_checkpoint
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.data.open import recognise
from dis_cli.data.source import ImageSource
from dis_cli.errors import MismatchError, UsageError, differing, listed
from dis_cli.events import Event, Note
from dis_cli.runs.folder import RunDir
from dis_cli.training.state import TrainingState
from dis_cli.workflows.build import build_source, encodes_first
from dis_cli.workflows.load.averages import averages_kept
from dis_cli.workflows.load.identity import recorded_images
from dis_cli.workflows.load.mismatch import check_weights
from dis_cli.workflows.train.build import build_learning_rate
from dis_cli.workflows.train.resume import LastState, counts_of, decisive, fixed_differences, flat_settings
from dis_cli.workflows.train.steps import Job

# Settings of a branch that say nothing of how it is trained.
_NAMES = ("name", "description")


@dataclass
class Branch:
    """The state of a run that a new run continues.

    Attributes:
        run: The folder of the run.
        config: Its settings.
        checkpoint: The checkpoint that is continued; its tensors are there on the leader only, and until `begin`.
        asked_step: The step that was asked for; None took the newest.
        notes: Sentences on what was passed over to find it.
    """

    run: Path
    config: RunConfig
    checkpoint: Checkpoint
    asked_step: int | None = None
    notes: tuple[str, ...] = ()
    _counts: tuple[int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = counts_of(self.checkpoint, self.config)

    @property
    def step(self) -> int:
        """The step that the new run begins after."""
        return self.checkpoint.step

    def lineage(self, config: RunConfig) -> dict[str, object]:
        """What the new run records of it: where it comes from, and every setting that differs, before and now."""
        before, now = flat_settings(self.config), flat_settings(config)
        changed = {key: [before[key], now[key]] for key in now if before[key] != now[key] and key not in _NAMES}
        return {
            "kind": "branch",
            "path": str(self.checkpoint.path.resolve()),
            "step": self.step,
            "asked_step": self.asked_step,
            "images": self._counts[2],
            "sha256": self.checkpoint.sha256,
            "changed": changed,
        }

    def check(self, run: RunDir, last: LastState, _config: RunConfig) -> None:
        """Refuse a folder that holds another run.

        Raises:
            MismatchError: It does. (A run that is this very branch is continued without its source.)
        """
        if last.checkpoint is not None:
            raise MismatchError(
                f"`{run.path}` holds a run already, at step {last.step}, which is no branch of this state of "
                f"`{self.run}`",
                "Give another folder with `--out DIR`, or start over with `--fresh`",
            )
        if self.checkpoint.tensors:
            check_weights(self.checkpoint.path, self.checkpoint.tensors["model"], self.config)

    def check_settings(self, config: RunConfig) -> None:
        """Refuse settings that do not go with the state.

        Raises:
            MismatchError: Lists those that a branch cannot change, with both values.
            UsageError: No step would be left to take.
        """
        if fixed := fixed_differences(self.config, config):
            before, now = decisive(self.config), decisive(config)
            lines = differing({key: before[key] for key in fixed}, now, as_text, words=("there", "asked for"))
            hint = "Leave them out, or begin a new run without `--branch`"
            if not {"model.backbone", "seed"} & {*fixed}:
                hint = f"Leave them out, or begin with its weights, as far as they fit: {self._by_init(config)}"
            raise MismatchError(
                f"A branch of `{self.run}` cannot have another model, other data or another process:{listed(lines)}",
                hint,
            )
        if config.train.steps <= self.step:
            more = self.step + self.config.train.steps
            raise UsageError(
                f"`{self.checkpoint.path}` is at step {self.step}, and train.steps is {config.train.steps}: no step is "
                "left to take",
                f"Steps count on from there: set more in all, such as train.steps={more}, or begin at an earlier "
                "checkpoint with `--at STEP`",
            )

    def check_place(self, path: Path) -> None:
        """Refuse data of another kind, before they are looked at.

        Args:
            path: Where the user says that they are.

        Raises:
            MismatchError: They are.
        """
        usual = self.config.data.source
        if (kind := recognise(path, usual)) != usual:
            raise MismatchError(
                f"The data at `{path}` are not those that `{self.run}` was trained on: data.source is {kind} there, "
                f"{usual} in the run",
                self._with_other_data(path),
            )

    def open_data(self, config: RunConfig) -> ImageSource:
        """The data of the new run, which have to be those of the run; see `build_source`.

        Raises:
            MismatchError: They are of other classes or sizes.
        """
        try:
            return build_source(config)
        except MismatchError as error:
            raise MismatchError(error.message, self._with_other_data(config.data.path)) from error

    def check_data(self, config: RunConfig, source: ImageSource, identity: Mapping[str, str]) -> None:
        """Refuse other data.

        Args:
            config: Settings of the new run.
            source: Those of the new run; where it encodes its images, these.
            identity: From `identity_of`, of ``source``.

        Raises:
            MismatchError: Gives both fingerprints.
        """
        meta, is_of_images = self.checkpoint.meta, encodes_first(self.config)
        key = "images_fingerprint" if is_of_images else "data_fingerprint"
        before = recorded_images(meta, self.config) if is_of_images else meta.get(key)
        if before is not None and before != identity[key]:
            raise MismatchError(
                f"The data {source.name} are not those that `{self.run}` was trained on: sha256 {str(before)[:12]} "
                f"then, {identity[key][:12]} now",
                self._with_other_data(config.data.path),
            )

    def begin(self, job: Job, state: TrainingState, meta: Mapping[str, object]) -> Generator[Event, None]:
        """Give the run the state, in a checkpoint of the same step; all ranks call this.

        From then on it is continued like any other run, and the one that it comes from is not needed any more.
        """
        group = job.process.group
        groups, anew = self._groups(job.config) if group.is_leader else (None, [])
        state.load(groups, group)
        state.step, state.num_skipped, state.images = group.from_leader(lambda: self._counts)
        if groups is not None:
            counts = {"num_skipped": state.num_skipped, "images": state.images}
            write_checkpoint(job.run.checkpoints, state.step, groups, {**meta, **counts})
        yield Note(message=self._told(job.config, anew))

    def _groups(self, config: RunConfig) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
        """The groups of tensors of the new run, and the decays of averages that begin anew."""
        tensors, self.checkpoint = self.checkpoint.tensors, self.checkpoint.with_groups(())
        kept = averages_kept(self.config)
        decays = (config.train.ema_decay, *config.train.ema_more)
        names = ["ema", *(f"ema_more_{index}" for index in range(len(config.train.ema_more)))]
        # An average begins as a copy of the weights.
        averages = {name: tensors[kept.get(decay, "model")] for name, decay in zip(names, decays, strict=True)}
        anew = [decay for decay in decays if decay not in kept]
        return {"model": tensors["model"], **averages, "optimizer": tensors["optimizer"]}, anew

    def _told(self, config: RunConfig, anew: list[float]) -> str:
        before, now = flat_settings(self.config), flat_settings(config)
        other = [key for key in before if before[key] != now[key] and key not in _NAMES]
        step, images = self.step, self._counts[2]
        told = [f"branch of `{self.run}` from step {step}, after {images} images" + (":" if other else "")]
        told += [f"{key}: {as_text(before[key])} -> {as_text(now[key])}" for key in other]
        if step > 0:
            last, first = build_learning_rate(self.config, step - 1), build_learning_rate(config, step)
            told.append(f"learning rate: {last:.3g} in step {step}, {first:.3g} in step {step + 1}")
        if anew:
            told.append(f"averages that begin with the weights of step {step}: {', '.join(map(as_text, anew))}")
        return "\n  ".join(told)

    def _with_other_data(self, path: Path | None) -> str:
        command = ["dis", "train", "--init", str(self.run), *(["--data", str(path)] if path else [])]
        return (
            f"A branch goes on with the same data; give those with `--data PATH` if they have moved. Other data are "
            f"for a new run that begins with its weights: `{shlex.join(command)}`"
        )

    def _by_init(self, config: RunConfig) -> str:
        now = decisive(config)
        settings = [f"{key}={as_text(now[key])}" for key in fixed_differences(self.config, config)]
        place = ["--preset", str(RunDir(self.run).config_path), "--init", str(self.run)]
        out = self.run.with_name(f"{self.run.name}-init")
        return f"`{shlex.join(['dis', 'train', *place, '--out', str(out), *settings])}`"
