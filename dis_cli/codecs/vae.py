"""A diffusers ``AutoencoderKL`` between images and the latents that the model sees."""

from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dis_cli.codecs.locate import WEIGHTS, VaeFiles, locate_vae
from dis_cli.errors import DataError, RefusedError, first_line
from dis_cli.runtime.untrusted import check_safetensors

# Images decoded at a time: one activation of the usual VAE's last layers takes 67 MB an image at 256 pixels (256
# channels), and several are alive at once.
DECODE_GROUP = 8


class VaeCodec:
    """A frozen VAE: latents = scale * (z - shift), in float32; the shift is the VAE's own, mostly 0.

    Differs from the reference: encoding runs without gradients and with frozen parameters (there, gradients flowed into
    the encoder), and the mode of the posterior is a choice beside a sample of it.

    Args:
        vae: A bundled VAE's name, a folder in diffusers' layout, or a hub id that is in the local Hugging Face cache.
        scale: Factor on the VAE's z, which brings latents to about unit variance; None takes the VAE's own.

    Raises:
        MissingResourceError: No such VAE on this machine.
        DataError: The files are not an ``AutoencoderKL`` or are damaged.
        RefusedError: They are made to fill the memory, or lead to other files.
    """

    def __init__(self, vae: str, *, scale: float | None = None, device: torch.device | str = "cpu") -> None:
        self.files = locate_vae(vae)
        self.scale = self.files.scale if scale is None else scale
        self.shift = self.files.shift
        self.device = torch.device(device)
        self._module = _load(self.files).to(self.device).requires_grad_(False).eval()
        if self.device.type == "cpu":
            # Convolutions are a tenth (Stable Diffusion's widths) to a quarter (narrow ones) faster so.
            self._module.to(memory_format=torch.channels_last)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.files.latent_channels

    @property
    def downsample(self) -> int:
        """Image pixels per latent pixel along one side."""
        return self.files.downsample

    @torch.no_grad()
    def moments(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c h2 w2"], Float[Tensor, "b c h2 w2"]]:
        """The posterior's mean and standard deviation, not scaled.

        Args:
            images: Images in [-1, 1]; sides are multiples of ``downsample``.

        Returns:
            Mean and standard deviation; the latter lies in [3e-7, 2.2e4], as the VAE clamps it.
        """
        posterior = self._module.encode(images.to(self.device, torch.float32)).latent_dist
        return posterior.mean, posterior.std

    @torch.no_grad()
    def modes(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The scaled latents of images in [-1, 1] that are most likely: scale * (mean - shift)."""
        mean, _ = self.moments(images)
        return (mean - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Images in about [-1, 1], not clamped, of scaled latents."""
        z = latents.to(self.device, torch.float32) / self.scale + self.shift
        return torch.cat([self._module.decode(part).sample for part in z.split(DECODE_GROUP)])


def _load(files: VaeFiles) -> Any:
    folder = files.config.parent
    # read first: says what is wrong before anything slow is imported
    _ = files.settings
    index = folder / f"{WEIGHTS}.index.json"
    if index.exists():
        raise RefusedError(
            f"`{index}` was refused: diffusers would read the weights from the files that it names",
            f"Give a folder whose weights are in {WEIGHTS} alone",
        )
    check_safetensors(files.weights)
    # Importing diffusers takes seconds, so it waits until there is something to load.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from_pretrained: Any = AutoencoderKL.from_pretrained
    try:
        # What this cannot open diffusers would take for text, and read whole.
        with safe_open(files.weights, framework="pt"):
            pass
        module, report = from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"VAE unreadable: {folder}: {first_line(error)}") from error
    # diffusers only warns about absent weights and leaves them random.
    if report["missing_keys"]:
        raise DataError(
            f"VAE weights incomplete: {files.weights} lacks {len(report['missing_keys'])} tensors, "
            f"among them {min(report['missing_keys'])}"
        )
    return module
