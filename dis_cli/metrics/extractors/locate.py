"""The weights of each extractor and their places; without torch, so that missing ones are reported at once."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dis_cli.errors import MissingResourceError
from dis_cli.runtime.files import sha256_file

INCEPTION_FILE: Final = "pt_inception-2015-12-05-6726825d.pth"
# What torch-fidelity calls the same bytes.
FIDELITY_FILE: Final = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256: Final = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_HINT: Final = (
    f"Fetch {INCEPTION_FILE} from the releases of pytorch-fid (torch-fidelity's is called weights-inception-...), "
    "put it anywhere, and give its path with `--inception PATH` (or evaluate.inception=PATH); or add `--download` to "
    "`dis eval-fid`, which fetches it"
)

CLIP_MODEL: Final = "clip-vit-b-32"
CLIP_SHA256: Final = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
CLIP_FILE: Final = f"{CLIP_MODEL}-{CLIP_SHA256}.pt"

DINOV2_MODEL: Final = "dinov2-vit-l-14"
DINOV2_FILE: Final = "dinov2_vitl14_pretrain.pth"
DINOV2_FOLDER: Final = "facebookresearch_dinov2_main"


@dataclass(frozen=True)
class Weights:
    """A file of weights, present.

    Args:
        sha256: What its content must have, because it is known by its name; None takes any.
    """

    path: Path
    sha256: str | None = None

    def require_hash(self) -> str:
        """The sha256 of the file's content, to be asked for before anything reads the file.

        Raises:
            MissingResourceError: It is another than the one that a file of this name has.
        """
        try:
            found = sha256_file(self.path)
        except OSError as error:
            raise MissingResourceError(
                f"Weights cannot be read: `{self.path}` ({error.strerror or error})", "Fetch the file anew"
            ) from error
        if self.sha256 not in (None, found):
            raise MissingResourceError(
                f"`{self.path}` is damaged or another file: expected sha256 {self.sha256}, found {found}",
                "Delete it and fetch it anew",
            )
        return found


def locate_inception(inception: Path | None) -> Path:
    """The Inception weights that images are scored with.

    Args:
        inception: The file that the user named, or None.

    Raises:
        MissingResourceError: They are not there, or those in torch's cache are damaged.
    """
    found = find_inception(inception)
    if found is None:
        raise MissingResourceError(
            f"FID needs the weights of Inception, which are not bundled and not in `{torch_cache() / 'checkpoints'}`",
            INCEPTION_HINT,
        )
    if found.sha256 is not None:
        found.require_hash()
    return found.path


def find_inception(inception: Path | None = None) -> Weights | None:
    """The file that the user named, else the one in torch's cache, where torch-fidelity puts it; None without one.

    Args:
        inception: The file that the user named, which may hold other weights, or None.

    Raises:
        MissingResourceError: The named file is not there.
    """
    if inception is not None:
        if not inception.is_file():
            raise MissingResourceError(f"Inception weights not found: `{inception}`", INCEPTION_HINT)
        return Weights(inception)
    cached = [torch_cache() / "checkpoints" / name for name in (FIDELITY_FILE, INCEPTION_FILE)]
    return next((Weights(path, INCEPTION_SHA256) for path in cached if path.is_file()), None)


def locate_clip() -> Weights:
    """The weights of CLIP ViT-B/32 in torch's cache.

    Raises:
        MissingResourceError: They are not there.
    """
    path = torch_cache() / "checkpoints" / CLIP_FILE
    if not path.is_file():
        raise MissingResourceError(
            f"Weights of CLIP not found: `{path}`",
            f"Put OpenAI's ViT-B-32.pt there under this name, or let torch-fidelity fetch it: "
            f"`fidelity --feature-extractor {CLIP_MODEL} ...`",
        )
    return Weights(path, CLIP_SHA256)


def locate_dinov2() -> Weights:
    """The weights of DINOv2 ViT-L/14 in torch's cache, beside its code.

    Raises:
        MissingResourceError: One of them is not there.
    """
    path, code = torch_cache() / "checkpoints" / DINOV2_FILE, torch_cache() / DINOV2_FOLDER / "hubconf.py"
    for wanted in (path, code):
        if not wanted.is_file():
            raise MissingResourceError(
                f"DINOv2 is not in torch's cache: there is no `{wanted}`",
                "Where there is a network, `python -c \"import torch; torch.hub.load('facebookresearch/dinov2', "
                "'dinov2_vitl14')\"` fetches both",
            )
    return Weights(path)


def torch_cache() -> Path:
    """The folder in which torch keeps what it fetches, as ``torch.hub.get_dir`` has it by default."""
    home = os.environ.get("TORCH_HOME")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return root.expanduser() / "hub"
