"""Images of a set to features, a unit at a time; shared by the ranks of a job, the leader gets them in order."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dis_cli.events import Event, Progress
from dis_cli.metrics.extractors.base import Extractor
from dis_cli.metrics.extractors.classifier import DigitClassifier
from dis_cli.metrics.images.sets import FEATURE_BATCH, ImageSet, Unit, cut
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.runtime.signals import StopRequest


@dataclass(frozen=True)
class UnitOutputs:
    """The outputs of a unit of images.

    Attributes:
        first: Place of the first image.
        outputs: Of the extractor, by their names; a row an image.
        sizes: Number of images of each height and width.
        remarks: Number of images changed on reading, by the change.
        images: The images themselves, (n, h, w, c), where they are asked for.
    """

    first: int
    outputs: dict[str, Tensor]
    sizes: Counter[tuple[int, int]]
    remarks: Counter[str]
    images: Tensor | None


def extract(
    images: ImageSet,
    extractor: Extractor,
    outputs: set[str],
    group: ProcessGroup,
    stop: StopRequest,
    *,
    keep_images: bool = False,
) -> Iterator[Event | UnitOutputs]:
    """Look at all images of a set.

    Every rank takes one unit a round, and the leader gets all of a round in the order of the images. How many ranks
    there are decides nothing about the bits: a unit is always cut into the same batches.

    Args:
        outputs: Names of the outputs that are of use.
        group: All ranks; each has to call this.
        keep_images: Hand on the images too.

    Yields:
        Progress, and on the leader a UnitOutputs for each unit.

    Raises:
        DataError: An image cannot be read.
        Interrupted: A signal asked to stop.
    """
    count = len(images)
    # What was seen of a set is not kept before all of it is; of a reference it then is, for good.
    hint = "Run the same command again, from the beginning"
    units = cut(count, group.from_leader(lambda: images.unit_size))
    own = images.units(units[group.rank :: group.world_size])
    for start in range(0, len(units), group.world_size):
        together = units[start : start + group.world_size]
        done, in_all = together[0].start, sum(map(len, together))
        state = f"{done} of {count} images were processed"
        part = None
        if group.rank < len(together):
            for item in own:
                stop.obey(state, hint)
                if isinstance(item, Unit):
                    part = _look(item, extractor, outputs, keep_images=keep_images, travels=group.world_size > 1)
                    break
                if item < 1:
                    yield Progress(done=done + int(item * in_all), total=count, unit="images")
        group.obey(stop, state, hint)
        for found in group.gather(part) or ():
            if found is not None:
                yield found
        yield Progress(done=together[-1].stop, total=count, unit="images")


def look(extractor: Extractor, images: Sequence[Tensor]) -> dict[str, Tensor]:
    """All outputs of an extractor, in batches of FEATURE_BATCH.

    Args:
        extractor: Feature extractor; a classifier of digits gets images reduced to its size.
        images: (h, w, c) 8-bit each, of any sizes: those of one size go together.
    """
    parts: list[dict[str, Tensor]] = []
    for batch in (images[first : first + FEATURE_BATCH] for first in range(0, len(images), FEATURE_BATCH)):
        places: dict[torch.Size, list[int]] = {}
        for place, image in enumerate(batch):
            places.setdefault(image.shape, []).append(place)
        found = [_outputs(extractor, torch.stack([batch[place] for place in own])) for own in places.values()]
        if len(found) > 1:
            order = torch.tensor([place for own in places.values() for place in own]).argsort()
            found = [{name: torch.cat([one[name] for one in found])[order] for name in found[0]}]
        parts += found
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _outputs(extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
    return extractor.outputs(extractor.reduced(images) if isinstance(extractor, DigitClassifier) else images)


def _look(unit: Unit, extractor: Extractor, outputs: set[str], *, keep_images: bool, travels: bool) -> UnitOutputs:
    found = look(extractor, unit.images)
    return UnitOutputs(
        first=unit.first,
        # What stays in this process may stay on the GPU.
        outputs={name: found[name].cpu() if travels else found[name] for name in outputs},
        sizes=Counter((image.shape[0], image.shape[1]) for image in unit.images),
        remarks=unit.remarks,
        images=torch.stack(list(unit.images)) if keep_images else None,
    )
