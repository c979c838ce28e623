"""The bundled VAE of the digits, and the script that makes it."""

import pytest
import torch
from rebuild import digits_vae
from rebuild.digits_vae import measure, rebuild

from dis_cli.codecs.locate import BUNDLED, CONFIG, WEIGHTS, locate_vae
from dis_cli.codecs.vae import VaeCodec
from dis_cli.config.presets import load_preset
from dis_cli.data.published.digits import DigitsSource
from dis_cli.events import Finished, Progress


def test_the_files_are_small_and_name_no_place() -> None:
    folder = BUNDLED["digits"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert "/" not in (folder / CONFIG).read_text()


def test_it_is_what_the_preset_expects() -> None:
    config = load_preset("dis-s-digits-latent")
    codec = VaeCodec("digits")
    assert (codec.latent_channels, codec.downsample) == (config.model.in_channels, config.codec.downsample)
    assert codec.scale == config.codec.scale
    assert config.pixel_size == digits_vae.IMAGE_SIZE


def test_digits_survive_it_and_latents_have_unit_variance() -> None:
    measured = measure(BUNDLED["digits"])
    assert measured["psnr"] > 38
    for way in ("mean", "sample", "noisy"):
        assert measured[f"accuracy_{way}"] > measured["accuracy_plain"] - 0.01
    # real training digits are 3.1 away from the test digits
    assert measured["frechet_sample"] < 0.2
    spread = torch.tensor([measured[f"latent_std_{channel}"] for channel in range(4)])
    assert abs(spread.square().mean() - 1) < 0.1
    assert spread.min() > 0.2


def test_a_folder_of_the_same_name_is_not_taken_for_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert locate_vae("digits").config == BUNDLED["digits"] / CONFIG


def test_rebuilding_is_reproducible(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(digits_vae, "NUM_EPOCHS", 1)
    few = DigitsSource("test", image_size=32, channels=3)
    monkeypatch.setattr(digits_vae, "_images", lambda _: torch.stack([few.load(index, None) for index in range(48)]))
    monkeypatch.setattr(
        digits_vae, "measure", lambda folder: {"channels": float(VaeCodec(str(folder)).latent_channels)}
    )
    weights = []
    for name in ("a", "b"):
        *before, last = rebuild(tmp_path / name)
        assert isinstance(before[0], Progress)
        assert isinstance(last, Finished)
        assert last.result["channels"] == 4
        assert last.result["scaling_factor"] == locate_vae(str(tmp_path / name)).scaling_factor
        weights.append((tmp_path / name / WEIGHTS).read_bytes())
    assert weights[0] == weights[1]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            VaeCodec(str(tmp_path / "a")).moments(few.load(0, None)[None])[0],
            VaeCodec("digits").moments(few.load(0, None)[None])[0],
        )
