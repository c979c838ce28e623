"""Finds the folder of a VAE without importing torch, so that a wrong name is reported at once.

diffusers takes a mistyped local path for a hub id and reports that it could not connect. Here a string is looked up on
this machine only: first as a folder, then as a model in the local Hugging Face cache. Nothing is downloaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dis_cli.errors import MissingResourceError

CONFIG: Final = "config.json"
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"

_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_HINT = (
    f"Give a folder that holds {CONFIG} and {WEIGHTS}: `--vae DIR`, or codec.vae in a preset. Where there is a "
    "network, `hf download stabilityai/sd-vae-ft-ema --local-dir DIR` fetches the usual one"
)


@dataclass(frozen=True)
class VaeFiles:
    """The two files of a VAE, both present."""

    config: Path
    weights: Path


def locate_vae(vae: str) -> VaeFiles:
    """Find a VAE's files on this machine.

    Args:
        vae: A folder in diffusers' layout, or a hub id ``owner/name`` or ``owner/name@revision`` that is in the local
            Hugging Face cache.

    Raises:
        MissingResourceError: Neither is there, or a file is missing from the folder.
    """
    folder = Path(vae).expanduser()
    if folder.exists():
        return _in_folder(folder, vae)
    hub_id = _HUB_ID.fullmatch(vae)
    if hub_id is None:
        raise MissingResourceError(f"VAE not found: there is no folder `{vae}`", hint=_HINT)
    return _in_cache(vae, hub_id["repo"], hub_id["revision"])


def _in_folder(folder: Path, vae: str) -> VaeFiles:
    files = VaeFiles(folder / CONFIG, folder / WEIGHTS)
    missing = [file.name for file in (files.config, files.weights) if not file.is_file()]
    if not missing:
        return files
    # A whole pipeline keeps its VAE one level down.
    inner = (folder / "vae" / CONFIG).is_file()
    raise MissingResourceError(
        f"VAE not found: `{vae}` holds no {' and no '.join(missing)}",
        hint=f"Did you mean `{Path(vae) / 'vae'}`?" if inner else _HINT,
    )


def _in_cache(vae: str, repo: str, revision: str | None) -> VaeFiles:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError

    found: dict[str, Path] = {}
    for name in (CONFIG, WEIGHTS):
        try:
            path = try_to_load_from_cache(repo, name, revision=revision)
        except HFValidationError:
            path = None
        # A third answer, an object, records that the hub has no such file.
        if isinstance(path, str):
            found[name] = Path(path)
    if len(found) == 2:
        return VaeFiles(found[CONFIG], found[WEIGHTS])
    missing = " and ".join(name for name in (CONFIG, WEIGHTS) if name not in found)
    raise MissingResourceError(
        f"VAE not found: `{vae}` is not a folder, and the local Hugging Face cache ({HF_HUB_CACHE}) has no {missing} "
        "of a model of that name",
        hint=_HINT,
    )
