"""Checkpoints in the published format, with the recorded parameters: what comes of them is what was recorded."""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import recorded_model
from support.oracle import group, load, relative_error
from support.tiny import dis, result
from support.vae import save_tiny_vae
from torch import Tensor

import dis_cli
from dis_cli.codecs.pixel import PixelCodec, to_uint8
from dis_cli.codecs.vae import VaeCodec

# Image side, patch, channels, width, blocks, classes, as recorded.
MODELS = {
    "model_a_f64": (8, 2, 3, 32, 5, 0, "learned_range"),
    "model_b_f32": (8, 2, 4, 48, 7, 10, "learned_range"),
    "model_c_f64": (16, 4, 3, 40, 3, 5, "fixed_large"),
}
EXPORTS = ("x.safetensors", "y.pt", "folder")


def publish(path: Path, name: str, prefix: str = "") -> Path:
    """What the published training code writes: trained weights, here zeros, their average, optimizer and arguments."""
    weights = {prefix + key: tensor for key, tensor in group(load(name), "param").items()}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    content = {
        "model": {key: torch.zeros_like(tensor) for key, tensor in weights.items()},
        "ema": weights,
        "opt": optimizer.state_dict(),
        "args": argparse.Namespace(model="DiS-S/2", image_size=256, ckpt_every=5000, resume=None, latent_space=True),
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_published_file_is_shown(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = publish(tmp_path / "x.pt", name, "module.")
    assert dis("checkpoint", "show", path, "--json") == 0
    found = result(capsys)
    model = found["config"]["model"]
    shape = tuple(
        model[key] for key in ("image_size", "patch_size", "in_channels", "embed_dim", "depth", "num_classes")
    )
    assert (*shape, found["config"]["diffusion"]["variance"]) == MODELS[name]
    assert found["parameters"] == sum(tensor.numel() for tensor in group(load(name), "param").values())
    assert (found["kind"], found["averages"], found["ema_decay"]) == ("published", [0.9999, 0.0], 0.9999)
    assert found["step"] is None


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_recorded(name: str, tmp_path: Path) -> None:
    path = publish(tmp_path / "x.pt", name)
    paths = [path, *(tmp_path / export for export in EXPORTS)]
    for out in paths[1:]:
        assert dis("checkpoint", "export", path, "--out", out, "-q") == 0
    recorded = load(name)
    for checkpoint in paths:
        model = dis_cli.load_model(checkpoint, device="cpu")
        inputs = recorded["x"].float(), recorded["t"], recorded.get("labels")
        assert relative_error(model(*inputs), recorded["out_eval"]) <= 1e-4
        if name.endswith("f64"):
            # The recorded parameters are numbers of float32: nothing is lost on the way.
            got = model.double()(recorded["x"].double(), recorded["t"], recorded.get("labels"))
            assert relative_error(got, recorded["out_eval"]) <= 1e-8
    assert dis_cli.load_model(path, device="cpu", ema=0).get_parameter("pos_embed").count_nonzero() == 0


@pytest.mark.parametrize("form", ["x.pt", *EXPORTS])
@pytest.mark.parametrize("case", ["a_plain", "b_cfg"])
def test_sampled_images_are_those_recorded(
    case: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = load("sample_e2e_f32")
    checkpoint = publish(tmp_path / "x.pt", "model_a_f64" if case == "a_plain" else "model_b_f32")
    if form != "x.pt":
        assert dis("checkpoint", "export", checkpoint, "--out", tmp_path / form, "-q") == 0
    z, noise = recorded[f"{case}.z"], recorded[f"{case}.noise_in_call_order"]
    settings: list[object] = ["--steps", 10, "--sampler", "ancestral", "sample.precision=fp32"]
    if case == "b_cfg":
        # The published loop carries every image twice, and throws the second copy away.
        z, noise = z[: len(z) // 2], noise[:, : len(z) // 2]
        classes = ",".join(str(int(label)) for label in recorded["b_cfg.labels"][: len(z)])
        settings += ["--class", classes, "--cfg-scale", 1.5, "sample.cfg_channels=first3"]
        settings += ["--vae", save_tiny_vae(tmp_path / "vae"), "codec.downsample=2"]
    # Each image has a generator of its own; here all draw what was recorded.
    starts, draws = itertools.cycle(z), itertools.chain(noise)
    monkeypatch.setattr("dis_cli.workflows.sample.generate.torch.randn", lambda *_args, **_kwargs: next(starts))
    monkeypatch.setattr("dis_cli.diffusion.samplers.loop.draw_noise", lambda *_arguments: next(draws))
    codec = PixelCodec if case == "a_plain" else VaeCodec
    decode, decoded = codec.decode, list[Tensor]()

    def watched(self: PixelCodec | VaeCodec, x: Tensor) -> Tensor:
        decoded.append(x.clone())
        return decode(self, x)

    monkeypatch.setattr(codec, "decode", watched)
    out = tmp_path / "out"
    assert dis("sample", "--ckpt", tmp_path / form, "--out", out, "-n", len(z), "-q", *settings) == 0

    expected = recorded[f"{case}.final"][: len(z)]
    assert relative_error(torch.cat(decoded), expected) <= 1e-4
    if case == "a_plain":
        files = [record["file"] for record in json.loads((out / "samples.json").read_text())["images"]]
        images = np.stack([np.asarray(Image.open(out / file)) for file in files])
        difference = np.abs(images.astype(int) - to_uint8(expected).numpy())
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.001


@pytest.mark.parametrize("name", MODELS)
def test_the_published_model_takes_what_is_exported(name: str, tmp_path: Path) -> None:
    """As its own program loads them: by name, from "ema", strictly."""
    path = publish(tmp_path / "x.pt", name)
    assert dis("checkpoint", "export", path, "--out", tmp_path / "y.pt", "-q") == 0
    weights = torch.load(tmp_path / "y.pt", map_location="cpu", weights_only=True)["ema"]
    expected = group(load(name), "param")
    assert weights.keys() == expected.keys()
    assert all(weights[key].equal(tensor.float()) for key, tensor in expected.items())
    recorded_model(name, torch.float32).load_state_dict(weights, strict=True)
