"""Location of a VAE's folder, without torch, so that a wrong name is reported at once.

diffusers takes a mistyped local path for a hub id and reports that it could not connect. Here a string is looked up on
this machine only: first as a folder, then as a model in the local Hugging Face cache. Nothing is downloaded.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from dis_cli.errors import DataError, MissingResourceError
from dis_cli.paths import home_path
from dis_cli.runtime.files import sha256_file

CONFIG: Final = "config.json"
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"

# VAEs that come with the package, by the name they are asked for with.
BUNDLED: Final = {"digits": Path(__file__).parent / "weights" / "digits-vae"}
# What a VAE is scaled by whose configuration does not say: Stable Diffusion's, as diffusers has it.
USUAL_SCALE: Final = 0.18215

_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_HINT = (
    f"Give a folder that holds {CONFIG} and {WEIGHTS}: `--vae DIR` (or codec.vae=DIR). Where there is a "
    "network, `hf download stabilityai/sd-vae-ft-ema --local-dir DIR` fetches the usual one"
)


@dataclass(frozen=True)
class VaeFiles:
    """The two files of a VAE, both present."""

    config: Path
    weights: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration, of an AutoencoderKL.

        Raises:
            DataError: It is no such configuration.
        """
        try:
            settings = json.loads(self.config.read_bytes())
            kind = settings.get("_class_name")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"VAE configuration unreadable: {self.config}: {error}") from error
        if kind != "AutoencoderKL":
            raise DataError(f"{self.config} describes a {kind}; only an AutoencoderKL can be used as the VAE")
        return settings

    @property
    def scaling_factor(self) -> float | None:
        """The factor on z that the configuration asks for, or None.

        Raises:
            DataError: It is no positive number.
        """
        return self._number("scaling_factor", above=0.0)

    @property
    def scale(self) -> float:
        """The factor on z that brings latents to about unit variance."""
        return self.scaling_factor or USUAL_SCALE

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.settings.get("latent_channels", 4))

    @property
    def downsample(self) -> int:
        """Image pixels per latent pixel along one side."""
        return 2 ** (len(self.settings.get("block_out_channels", (64,))) - 1)

    @property
    def shift(self) -> float:
        """The shift subtracted from z before it is scaled; 0 for most VAEs.

        Raises:
            DataError: It is no number.
        """
        return self._number("shift_factor", above=-math.inf) or 0.0

    @cached_property
    def identity(self) -> tuple[str, str]:
        """The sha256 of the configuration, without the keys that only say where it came from, and of the weights."""
        meaning = {key: value for key, value in self.settings.items() if not key.startswith("_")}
        config = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
        return config, sha256_file(self.weights)

    def _number(self, key: str, *, above: float) -> float | None:
        value = self.settings.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
            bound = "" if above == -math.inf else f" above {above:g}"
            raise DataError(f"`{key}` in {self.config} must be a number{bound}, got {value!r}")
        return float(value)


def absolute_vae(vae: str) -> str:
    """The name of a VAE in every working directory: a folder's absolute path, any other name as it is."""
    is_name = vae in BUNDLED or (_HUB_ID.fullmatch(vae) is not None and not Path(vae).exists())
    return vae if is_name else str(home_path(vae).absolute())


def locate_vae(vae: str) -> VaeFiles:
    """Find a VAE's files on this machine.

    Args:
        vae: A name in BUNDLED, a folder in diffusers' layout, or a hub id ``owner/name`` or ``owner/name@revision``
            that is in the local Hugging Face cache. A folder that is called like a bundled one is given as ``./NAME``.

    Raises:
        MissingResourceError: Neither is there, or a file is missing from the folder.
    """
    folder = BUNDLED.get(vae, home_path(vae))
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
