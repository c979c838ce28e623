"""A diffusers ``AutoencoderKL`` between images and the latents that the model sees."""

import hashlib
import json
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dis_cli.codecs.locate import VaeFiles, locate_vae
from dis_cli.errors import DataError
from dis_cli.runtime.files import sha256_file

# Images decoded at a time: one activation of the usual VAE's last layers takes 67 MB an image at 256 pixels (256
# channels), and several are alive at once.
DECODE_GROUP = 8


class VaeCodec:
    """A frozen VAE: latents = scale * z, in float32.

    Differs from the reference: encoding runs without gradients and with frozen parameters (there, gradients flowed into
    the encoder), and the mode of the posterior is a choice beside a sample of it.

    Args:
        vae: A folder in diffusers' layout, or a hub id that is in the local Hugging Face cache.
        scale: Factor on the VAE's z; brings the latents to about unit variance.
        device: Where the VAE lives.

    Raises:
        MissingResourceError: No such VAE on this machine.
        DataError: The files are not an ``AutoencoderKL`` or are damaged.
    """

    def __init__(self, vae: str, *, scale: float = 0.18215, device: torch.device | str = "cpu") -> None:
        self.files = locate_vae(vae)
        self.scale = scale
        self.device = torch.device(device)
        self._module = _load(self.files).to(self.device).requires_grad_(False).eval()

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self._config["latent_channels"])

    @property
    def downsample(self) -> int:
        """Image pixels per latent pixel along one side."""
        return 2 ** (len(self._config["block_out_channels"]) - 1)

    @property
    def own_scale(self) -> float | None:
        """The scale that the VAE's own configuration asks for, or None."""
        return self._config.get("scaling_factor")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the weights and the configuration file."""
        parts = [sha256_file(self.files.weights), sha256_file(self.files.config)]
        return hashlib.sha256(":".join(parts).encode()).hexdigest()

    @torch.no_grad()
    def moments(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c h2 w2"], Float[Tensor, "b c h2 w2"]]:
        """The posterior's mean and log-variance, not scaled.

        Args:
            images: Images in [-1, 1]; sides are multiples of ``downsample``.

        Returns:
            Mean and log-variance; the latter is clamped to [-30, 20] by the VAE.
        """
        posterior = self._module.encode(images.to(self.device, torch.float32)).latent_dist
        return posterior.mean, posterior.logvar

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The posterior's mode, scaled: the same latent every time."""
        return self.scale * self.moments(images)[0]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Images in about [-1, 1], not clamped, of scaled latents."""
        z = latents.to(self.device, torch.float32) / self.scale
        return torch.cat([self._module.decode(part).sample for part in z.split(DECODE_GROUP)])

    @property
    def _config(self) -> dict[str, Any]:
        return dict(self._module.config)


def _load(files: VaeFiles) -> Any:
    folder = files.config.parent
    try:
        kind = json.loads(files.config.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise DataError(f"VAE configuration unreadable: {files.config}: {error}") from error
    if kind != "AutoencoderKL":
        raise DataError(f"{files.config} describes a {kind}; only an AutoencoderKL can be used as the VAE")

    # Importing diffusers takes seconds, so it waits until there is something to load.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from_pretrained: Any = AutoencoderKL.from_pretrained
    try:
        module, report = from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"VAE unreadable: {folder}: {str(error).strip().splitlines()[0]}") from error
    # diffusers only warns about absent weights and leaves them random.
    if report["missing_keys"]:
        raise DataError(
            f"VAE weights incomplete: {files.weights} lacks {len(report['missing_keys'])} tensors, "
            f"among them {min(report['missing_keys'])}"
        )
    return module
