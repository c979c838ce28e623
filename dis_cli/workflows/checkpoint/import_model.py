"""A model from elsewhere, taken in as a run folder."""

import json
import platform
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import torch

from dis_cli.checkpoints.store import write_checkpoint
from dis_cli.config.presets import dump_toml
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.errors import UsageError
from dis_cli.events import Event, Finished, Note, Wrote
from dis_cli.runs.folder import RunDir
from dis_cli.runtime.files import atomic_folder, write_durably
from dis_cli.runtime.targets import followed, require_writable
from dis_cli.version import __version__
from dis_cli.workflows.load.averages import averages_kept
from dis_cli.workflows.load.mismatch import check_overrides
from dis_cli.workflows.load.opened import Opened
from dis_cli.workflows.load.saved import SavedModel, read_saved


def import_model(opened: Opened, out: Path, *, dry_run: bool = False) -> Iterator[Event]:
    """Make a run folder of a file, or of an exported folder, so that samples and scores of it have a place.

    It has all the weights that there are: of a published file its average and the weights as they were trained. What
    the optimizer needs is not kept, so that it cannot be trained further.

    Args:
        opened: A published ``.pt``, or what `export` wrote, with the settings that the run then has.
        out: The run folder to be; must not exist, or be empty.
        dry_run: Only say what would be done.

    Raises:
        UsageError: ``out`` holds something, or it is a run already.
        DisError: The file or the disk do not allow it.
    """
    require_writable(out, "folder")
    out = followed(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"`{out}` exists", "Choose another folder with `--out DIR`: nothing is overwritten")
    path = opened.named
    if opened.form == "run":
        raise UsageError(f"`{path}` is a run of `dis train` already", f"Sample it as it is: `dis sample --ckpt {path}`")
    saved = read_saved(opened)
    saved.require_known()
    yield from (Note(message=note, level="warning") for note in saved.notes)
    others = [decay for decay in saved.held if decay != saved.average.decay]
    found = [saved, *(read_saved(opened.asking([f"sample.ema={as_text(decay)}"])) for decay in others)]
    config = _imported_config(saved, [each.average.decay for each in found])
    kept = averages_kept(config)
    groups = {kept[each.average.decay]: each.weights for each in found}
    step = saved.step or 0
    result: dict[str, object] = {
        "file": str(path),
        "sha256": saved.sha256,
        "step": saved.step,
        "averages": [each.average.decay for each in found],
        "parameters": sum(tensor.numel() for tensor in saved.weights.values()),
        "run": str(out),
        "checkpoint": str(RunDir(out).checkpoint(step)),
    }
    if dry_run:
        yield Finished(result=result | {"dry_run": True})
        return
    meta = {"config": config.model_dump(mode="json"), "class_names": list(saved.class_names)}
    meta |= {"vae": saved.vae_record} if saved.vae else {}
    origin = {"file": path.absolute().name, "sha256": saved.sha256, "versions": saved.versions}
    facts = {
        "schema": 1,
        "imported": datetime.now().astimezone().isoformat(timespec="seconds"),
        "dis": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "parameters": result["parameters"],
        "from": origin,
    }
    with atomic_folder(out) as folder:
        run = RunDir(folder)
        run.create()
        write_durably(run.config_path, dump_toml(config).encode(), shown_as=out / run.config_path.name)
        write_durably(run.run_json, (json.dumps(facts, indent=2) + "\n").encode(), shown_as=out / run.run_json.name)
        write_checkpoint(run.checkpoints, step, groups, meta | {"imported": origin})
    yield Wrote(what="run", path=out)
    yield Finished(result=result)


def _imported_config(saved: SavedModel, decays: Sequence[float]) -> RunConfig:
    """The settings of the run to be: those that lead to the weights that there are, of which ``saved`` is usual."""
    config = saved.asked_config
    check_overrides(saved.path, saved.config, config)
    if not averages_kept(config).keys() >= set(decays):
        config = config.model_copy(update={"train": config.train.model_copy(update={"ema_decay": max(decays)})})
    decay = saved.average.decay
    ema = None if averages_kept(config)[decay] == "ema" else decay
    return config.model_copy(update={"sample": config.sample.model_copy(update={"ema": ema})})
