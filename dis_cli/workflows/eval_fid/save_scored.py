"""Saving of generated images that are scored, on request."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dis_cli.events import Wrote
from dis_cli.runtime.precision import Precision
from dis_cli.runtime.targets import followed
from dis_cli.workflows.load.model import LoadedModel
from dis_cli.workflows.sample.facts import all_facts, choose_form, compared, sample_settings
from dis_cli.workflows.sample.output import Result, read_facts
from dis_cli.workflows.sample.unfinished import UnfinishedSamples, require_same


class SavedImages:
    """Images on their way into a folder of PNGs, an npz or a zip file; on the disk meanwhile, and not in memory.

    To make one writes nothing, and finds out whether they can be written.

    Args:
        out: The folder, or a file that ends in .npz or .zip.
        seeds: One an image.
        labels: The class of each; None when there are none.

    Raises:
        UsageError: Something else is there.
        MismatchError: Samples of other settings are there.
        StorageError: The disk does not take them.
    """

    def __init__(
        self,
        out: Path,
        loaded: LoadedModel,
        seeds: range,
        labels: npt.NDArray[np.int64] | None,
        precision: Precision,
    ) -> None:
        out = followed(out)
        config, form = loaded.config, choose_form(None, out, None, option="--save-images")
        facts = all_facts(loaded, precision, seeds, (), form, compiled=False)
        facts["num_of_class"] = None if labels is None else np.bincount(labels).tolist()
        self._labels = labels
        self._result = Result(
            out=out,
            form=form,
            facts=facts,
            settings=sample_settings(loaded, facts, seeds, ()),
            seeds=seeds,
            class_names=loaded.saved.class_names,
            num_classes=config.model.num_classes,
            shape=(config.pixel_size, config.pixel_size, config.pixel_channels),
        )
        there = read_facts(out)
        self._is_there = there is not None
        self._unfinished = UnfinishedSamples(out)
        if there is not None:
            require_same(out, compared(there), compared(facts))
        self._facts = facts

    def begin(self) -> None:
        """Make the folder in which images are kept on the way.

        Raises:
            StorageError: The disk does not take it.
            MismatchError: The folder holds something else.
        """
        if self._is_there:
            return
        self._unfinished.begin(self._facts)
        # What an earlier start has left may have been cut in other places.
        self._unfinished.remove()
        self._unfinished.begin(self._facts)

    def add(self, first: int, images: Tensor) -> None:
        """Keep the next images; ``first`` is the place of the first of them."""
        if not self._is_there:
            labels = None if self._labels is None else self._labels[first : first + len(images)]
            self._unfinished.add(first, images.numpy(), labels)

    def write(self) -> Wrote:
        """Make the folder or file, whole or not at all."""
        if not self._is_there:
            try:
                self._result.write(self._unfinished.parts(), self._unfinished.result, {})
            except BaseException:
                self._unfinished.discard_result()
                raise
            self._unfinished.remove()
        return Wrote(what="images", path=self._result.out)
