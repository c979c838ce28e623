"""A file of statistics of images, to be compared with later: `dis eval-fid stats`."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.errors import DisError, MismatchError, UsageError
from dis_cli.events import Event, Finished, Note, Wrote
from dis_cli.metrics.extractors.base import SPATIAL, Extractor, identity
from dis_cli.metrics.images.sets import StoredImages
from dis_cli.metrics.scores import Needs, notes_on, require_enough
from dis_cli.metrics.statistics_file import read_reference, write_reference
from dis_cli.runtime.device import join_job, pick_device
from dis_cli.runtime.files import numbered
from dis_cli.runtime.targets import require_writable
from dis_cli.workflows.eval_fid.references import collect, find_reference, reference_file
from dis_cli.workflows.eval_fid.result import extractor_facts
from dis_cli.workflows.eval_fid.scorer import make_extractor, notes_on_images
from dis_cli.workflows.load.identity import require_same_as_run
from dis_cli.workflows.sample.unfinished import differences


def make_statistics(
    data: str,
    out: Path,
    *,
    preset: str | None = None,
    inception: Path | None = None,
    extractor: Extractor | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    dry_run: bool = False,
) -> Iterator[Event]:
    """Measure mean and covariance of the features of images, and write them.

    Args:
        data: "data" is that of the preset; else a folder, archive or npz file of images.
        out: The file, which ends in .npz.
        preset: Whose data, and whose extractor when it is left to that.
        inception: The weights of Inception; None takes those in torch's cache.
        overrides: ``KEY=VALUE`` on the preset's settings.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: There is no such data, it is statistics already, or ``out`` holds something else.
        DisError: The images, the weights, the device or the disk do not allow it.
    """
    if out.suffix.lower() != ".npz":
        raise UsageError(f"--out: got `{out}`, allowed: a name that ends in .npz", "Try `--out ref.npz`")
    require_writable(out, "file", suffixes=(".npz",))
    place = pick_device(device)
    base = RunConfig() if preset is None else load_preset(preset)
    config = apply_overrides(base, overrides)
    require_same_as_run(preset, base, config)
    with contextlib.ExitStack() as held:
        process = yield from join_job(place, held, alone=dry_run)
        compared = find_reference(data, config)
        if compared.images is None or compared.file is not None:
            raise UsageError(f"`{data}` holds statistics already", "Give images with `--data`")
        require_enough(("fid",), len(compared.images), "to measure")
        own = extractor or make_extractor(config, inception, place)
        yield from (Note(message=note, level="warning") for note in notes_on_images(compared.images))
        facts: dict[str, object] = {"schema": 1, "out": str(out), "data": compared.name, "n": len(compared.images)}
        facts |= {} if compared.split is None else {"split": compared.split}
        facts |= extractor_facts(own)
        process.group.from_leader(lambda: _require_same(out, compared.images, own))
        if dry_run:
            yield Finished(result=facts | {"dry_run": True})
            return
        process.group.require_agreement(facts)
        needs = Needs(statistics=True, spatial=SPATIAL in own.sizes)
        found = yield from collect(compared, needs, own, process)
        if found is not None:
            sha256 = compared.images.sha256()
            yield from (Note(message=note, level="warning") for note in notes_on(found, None, what="measured"))
            write_reference(out, reference_file(found, compared, own, sha256))
            yield Wrote(what="statistics", path=out)
            facts |= {"data_sha256": sha256}
        process.wait_for_leader("all images were processed")
        yield Finished(result=facts)


def _require_same(out: Path, images: StoredImages | None, extractor: Extractor) -> None:
    """Refuse to write in the place of anything but the statistics of the same images."""
    if images is None or not out.is_file() or not out.stat().st_size:
        return
    free = next(place for place in numbered(out) if not place.exists())
    hint = f"Choose another file, such as `--out {free}`"
    try:
        there = read_reference(out)
    except DisError as error:
        raise UsageError(f"`{out}` exists and holds no statistics", hint) from error
    before = {**(there.made_with or {}), "n": there.statistics.count, "data_sha256": there.data_sha256}
    now = {**identity(extractor), "n": len(images), "data_sha256": images.sha256()}
    if changed := differences(before, now):
        raise MismatchError(f"`{out}` holds statistics of other images{changed}", f"{hint}, or delete that one")
