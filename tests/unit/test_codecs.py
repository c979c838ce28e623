import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from support.vae import DOWNSAMPLE, LATENT_CHANNELS, mode, save_tiny_vae

from dis_cli.codecs.locate import BUNDLED, CONFIG, WEIGHTS, locate_vae
from dis_cli.codecs.pixel import PixelCodec, to_uint8
from dis_cli.codecs.vae import DECODE_GROUP, VaeCodec
from dis_cli.errors import DataError, MissingResourceError, RefusedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the VAE's folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "own")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1


def test_pixels_pass_unchanged():
    grid = images(2)
    assert torch.equal(PixelCodec().decode(grid * 3), grid * 3)


def test_to_uint8_rounds_clamps_and_moves_channels_last():
    values = torch.tensor([-3.0, -1.0, -0.996, 0.0, 0.0039, 1.0, 7.0, 0.5]).reshape(1, 2, 1, 4)
    got = to_uint8(values)
    # (x + 1) * 127.5 = 0, 0, 0.51, 127.5 (to even), 127.997, 255, 255, 191.25
    assert got[0, 0].T.tolist() == [[0, 0, 1, 128], [128, 255, 255, 191]]
    assert got.dtype == torch.uint8
    assert got.shape == (1, 1, 4, 2)


def test_vae_agrees_with_diffusers(folder: Path):
    codec = VaeCodec(str(folder), scale=0.25)
    vae = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    with torch.no_grad():
        posterior = vae.encode(images(3)).latent_dist
        mean, std = codec.moments(images(3))
        # the order of the channels in memory decides last bits
        torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(std, posterior.std, atol=1e-5, rtol=0)
        assert torch.equal(mode(codec, images(3)), mean * 0.25)
        decoded = vae.decode(posterior.mean).sample
    torch.testing.assert_close(codec.decode(posterior.mean * 0.25), decoded, atol=1e-5, rtol=0)
    assert mean.shape == (3, codec.latent_channels, 16 // codec.downsample, 16 // codec.downsample)
    assert (codec.latent_channels, codec.downsample) == (LATENT_CHANNELS, DOWNSAMPLE)
    # what diffusers wrote into the configuration
    assert (codec.files.scale, codec.files.scaling_factor, codec.shift) == (0.18215, 0.18215, 0)


def test_vae_decodes_more_than_a_group(folder: Path):
    codec = VaeCodec(str(folder))
    latents = mode(codec, images(DECODE_GROUP + 1))
    together = codec.decode(latents)
    one_by_one = torch.cat([codec.decode(latent[None]) for latent in latents])
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=0)


def test_vae_never_takes_part_in_training(folder: Path):
    codec = VaeCodec(str(folder))
    given = images(1).requires_grad_()
    with torch.enable_grad():
        latents = mode(codec, given)
        assert not latents.requires_grad
        assert not codec.decode(latents.clone().requires_grad_()).requires_grad


def configure(folder: Path, **settings: object) -> Path:
    """Change a VAE's configuration; None removes a key."""
    config = json.loads((folder / CONFIG).read_text()) | settings
    for key, value in settings.items():
        if value is None:
            del config[key]
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def test_the_scale_is_the_vaes_own_unless_given(folder: Path, own: Path):
    latents = mode(VaeCodec(str(folder)), images(2))
    configure(own, scaling_factor=0.5)
    torch.testing.assert_close(mode(VaeCodec(str(own)), images(2)), latents * (0.5 / 0.18215))
    torch.testing.assert_close(mode(VaeCodec(str(own), scale=2.0), images(2)), latents * (2 / 0.18215))
    configure(own, scaling_factor=None)
    files = locate_vae(str(own))
    # the usual VAE's configuration says nothing
    assert (files.scaling_factor, files.scale) == (None, 0.18215)


def test_the_shift_is_the_vaes_own(folder: Path, own: Path):
    codec, shifted = VaeCodec(str(folder), scale=0.5), VaeCodec(str(configure(own, shift_factor=0.25)), scale=0.5)
    assert shifted.shift == 0.25
    latents = mode(shifted, images(2))
    torch.testing.assert_close(latents, mode(codec, images(2)) - 0.125)
    torch.testing.assert_close(shifted.decode(latents), codec.decode(mode(codec, images(2))), atol=1e-5, rtol=0)
    assert torch.equal(shifted.moments(images(2))[0], codec.moments(images(2))[0])


def test_identity_follows_what_decides_the_latents(folder: Path, own: Path, tmp_path: Path):
    config, weights = locate_vae(str(folder)).identity
    assert len(config) == len(weights) == 64
    # where it came from, and the order and spacing of the keys, say nothing
    configure(own, _name_or_path="elsewhere", _diffusers_version="0.1")
    settings = json.loads((own / CONFIG).read_text())
    (own / CONFIG).write_text(json.dumps(dict(reversed(settings.items())), indent=7))
    assert locate_vae(str(own)).identity == (config, weights)
    other = locate_vae(str(save_tiny_vae(tmp_path / "other", seed=1))).identity
    assert other[0] == config
    assert other[1] != weights
    configure(own, scaling_factor=1.0)
    assert locate_vae(str(own)).identity[0] != config
    assert locate_vae(str(own)).identity[1] == weights


@pytest.mark.parametrize(
    "name", ["./vae", "/nowhere/vae", "vae", "owner/name", "owner/name@main", "a--b/c", "a/b/c", ""]
)
def test_absent_vae_is_named_without_asking_the_network(
    name: str, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingResourceError) as caught:
        locate_vae(name)
    assert f"`{name}`" in caught.value.message
    assert caught.value.hint is not None
    assert {"--vae", CONFIG, WEIGHTS} <= set(caught.value.hint.replace("`", " ").replace(":", " ").split())


def test_locating_does_not_import_torch():
    code = (
        "import sys\n"
        "from dis_cli.codecs.locate import locate_vae\n"
        "for name in ('./none', 'owner/none'):\n"
        "    try: locate_vae(name)\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout.split()) == (0, ["MissingResourceError"] * 2)


def test_a_bundled_name_comes_before_a_folder_of_that_name(
    folder: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(folder, tmp_path / "bundled")
    monkeypatch.setitem(BUNDLED, "digits", tmp_path / "bundled")
    own.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert locate_vae("digits").weights == tmp_path / "bundled" / WEIGHTS
    assert locate_vae("./digits").weights.resolve() == tmp_path / "digits" / WEIGHTS
    assert locate_vae(str(tmp_path / "digits")).weights == tmp_path / "digits" / WEIGHTS


def test_a_folder_below_the_home_folder(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_vae("~/own").weights == own / WEIGHTS


@pytest.mark.parametrize("absent", [CONFIG, WEIGHTS])
def test_incomplete_folder_names_the_absent_file(own: Path, absent: str):
    (own / absent).unlink()
    with pytest.raises(MissingResourceError, match=absent.replace(".", r"\.")):
        VaeCodec(str(own))


def test_pipeline_folder_points_to_its_vae(own: Path, tmp_path: Path):
    shutil.copytree(own, tmp_path / "pipeline" / "vae")
    with pytest.raises(MissingResourceError) as caught:
        locate_vae(str(tmp_path / "pipeline"))
    assert str(tmp_path / "pipeline" / "vae") in (caught.value.hint or "")


def test_hub_id_is_read_from_the_local_cache(
    folder: Path, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tmp_path / "models--owner--name"
    shutil.copytree(folder, model / "snapshots" / "0123abcd")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("owner/name", "owner/name@0123abcd"):
        assert locate_vae(name).weights == model / "snapshots" / "0123abcd" / WEIGHTS
    assert VaeCodec("owner/name").files.identity == locate_vae(str(folder)).identity
    with pytest.raises(MissingResourceError):
        locate_vae("owner/name@other")


def test_damaged_vae_is_refused(own: Path):
    whole = (own / WEIGHTS).read_bytes()
    (own / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(DataError, match="unreadable"):
        VaeCodec(str(own))
    # diffusers itself would fill in random weights, with a warning
    tensors = load_file(save_and_return(own / WEIGHTS, whole))
    tensors.pop("encoder.conv_in.weight")
    save_file(tensors, own / WEIGHTS)
    with pytest.raises(DataError, match=r"encoder\.conv_in\.weight"):
        VaeCodec(str(own))


def save_and_return(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "config", ["{", "[]", "null", "\udcff", "{}", '{"_class_name": "AutoencoderTiny"}', '{"_class_name": ["x"]}']
)
def test_configuration_of_something_else_is_refused(own: Path, config: str):
    (own / CONFIG).write_text(config, errors="surrogateescape")
    with pytest.raises(DataError, match=r"config\.json"):
        VaeCodec(str(own))


def test_weights_that_lie_in_other_files_are_refused(own: Path):
    (own / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(RefusedError, match=r"index\.json` was refused"):
        VaeCodec(str(own))


def test_weights_of_another_shape_are_refused(own: Path):
    configure(own, latent_channels=8)
    with pytest.raises(DataError, match="unreadable"):
        VaeCodec(str(own))
