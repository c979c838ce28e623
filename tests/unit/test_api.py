"""The public Python face: the same models and the same images as on the command line."""

import inspect
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.exports import NAMES, exported, sampled, save_averages, weights_of
from support.tiny import save_latent_run
from support.vae import save_tiny_vae

import dis_cli
from dis_cli.models import DiS

FP32 = ("sample.precision=fp32",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_averages(tmp_path_factory.mktemp("runs") / "run", 3, 7)


def pixels(files: dict[str, bytes]) -> np.ndarray:
    images = [np.asarray(Image.open(io.BytesIO(data))) for data in files.values()]
    return np.stack([image[..., None] if image.ndim == 2 else image for image in images])


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, dis_cli; dir(dis_cli), dis_cli.DisError; assert not {'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'UNet'"):
        _ = dis_cli.UNet
    assert all(getattr(dis_cli, name) is not None and name in dir(dis_cli) for name in dis_cli.__all__)


def test_a_model_comes_with_its_settings(run: Path) -> None:
    model = dis_cli.load_model(run, device="cpu")
    assert isinstance(model, DiS)
    assert not model.training
    assert model.config.model.embed_dim == 16
    assert (model.step, model.class_names) == (7, tuple(NAMES))
    expected = weights_of(71)
    assert model.state_dict().keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in model.state_dict().items())
    assert model(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([0, 1])).shape == (2, 2, 8, 8)
    # For training on: parameters are the module's own.
    model.train().requires_grad_()
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [({"ema": 0}, 70), ({"ema": 0.9}, 72), ({"step": 3}, 31), ({"step": 3, "ema": 0.9}, 32)],
)
def test_weights_are_chosen(arguments: dict[str, float], seed: int, run: Path) -> None:
    model = dis_cli.load_model(str(run), device="cpu", **arguments)
    assert model.get_parameter("pos_embed").equal(weights_of(seed)["pos_embed"])
    assert model.get_parameter("mid_block.norm.weight").equal(weights_of(seed)["mid_block.norm.weight"])
    assert model.get_parameter("final_layer.linear.weight").equal(weights_of(seed)["final_layer.linear.weight"])


def test_images_are_those_of_the_command_line(run: Path, tmp_path: Path) -> None:
    model = dis_cli.load_model(run, device="cpu", overrides=FP32)
    images = dis_cli.sample_images(model, n=4)
    assert (images.shape, images.dtype) == ((4, 8, 8, 1), np.uint8)
    assert np.array_equal(images, pixels(sampled(run, tmp_path / "a")))
    several = dis_cli.sample_images(
        model, n=4, classes=["digit 3", 4], seeds=range(5, 9), steps=3, sampler="dpm++", cfg_scale=2
    )
    options = ["--class", "3,4", "--seed", 5, "--steps", 3, "--sampler", "dpm++", "--cfg-scale", 2]
    assert np.array_equal(several, pixels(sampled(run, tmp_path / "b", *options)))
    assert not np.array_equal(several, images)
    exported_model = dis_cli.load_model(exported(run, tmp_path, "safetensors"), device="cpu", overrides=FP32)
    assert np.array_equal(dis_cli.sample_images(exported_model, n=4), images)


def test_seeds_in_any_order(run: Path) -> None:
    model = dis_cli.load_model(run, device="cpu", overrides=FP32)
    images = dis_cli.sample_images(model, seeds=[3, 0, 3, 1])
    in_order = dis_cli.sample_images(model, n=4)
    assert np.array_equal(images, in_order[[3, 0, 3, 1]])
    assert len(dis_cli.sample_images(model, steps=1)) == 16
    same = dis_cli.sample_images(model, n=2, classes=3, seeds=[0, 1])
    assert np.array_equal(same, dis_cli.sample_images(model, classes="3", seeds=[0, 1]))


def test_a_model_in_training_is_sampled_as_in_evaluation(run: Path) -> None:
    model = dis_cli.load_model(run, device="cpu", overrides=FP32)
    expected = dis_cli.sample_images(model, n=2)
    model.train().requires_grad_()
    assert np.array_equal(dis_cli.sample_images(model, n=2), expected)
    assert model.training
    # It is the module that is sampled, with whatever has become of its weights.
    with torch.no_grad():
        model.get_parameter("final_layer.linear.bias").add_(0.5)
    assert not np.array_equal(dis_cli.sample_images(model, n=2), expected)


def test_latents_are_decoded_by_the_vae_given(tmp_path: Path) -> None:
    run, vae = save_latent_run(tmp_path / "run", "absent"), save_tiny_vae(tmp_path / "vae")
    model = dis_cli.load_model(run, device="cpu", overrides=FP32)
    with pytest.raises(dis_cli.DisError):
        dis_cli.sample_images(model, n=4)
    images = dis_cli.sample_images(model, n=4, vae=vae)
    assert images.shape == (4, 16, 16, 3)
    assert np.array_equal(images, pixels(sampled(run, tmp_path / "out", "--vae", vae)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 3, "seeds": [1]}, "n is 3 and there are 1 seeds"),
        ({"seeds": []}, "n is 0"),
        ({"seeds": [-1]}, "Seed -1 is out of range"),
        ({"seeds": [2**31]}, "out of range"),
        ({"classes": 10}, "Class 10 is out of range"),
        ({"classes": ["three"]}, "Unknown class: `three`"),
        ({"steps": 0}, "sample.steps"),
        ({"sampler": "eulr"}, "eulr"),
        ({"sampler": "heun", "steps": 4}, "heun"),
        ({"overrides": ["sample.stps=3"]}, "sample.stps"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, object], message: str, run: Path) -> None:
    model = dis_cli.load_model(run, device="cpu")
    with pytest.raises(dis_cli.DisError, match=message) as error:
        dis_cli.sample_images(model, **arguments)
    assert error.value.exit_code == 2


def test_wrong_paths_and_devices_are_told(tmp_path: Path, run: Path) -> None:
    for arguments in ({"path": tmp_path / "absent"}, {"path": run, "step": 9}, {"path": run, "ema": 0.5}):
        with pytest.raises(dis_cli.DisError) as error:
            dis_cli.load_model(**arguments)
        assert error.value.exit_code == 2
    with pytest.raises(dis_cli.DisError, match="teapot"):
        dis_cli.load_model(run, device="teapot")


def test_the_face_is_documented() -> None:
    for name in ("load_model", "sample_images"):
        function = getattr(dis_cli, name)
        documented = inspect.getdoc(function) or ""
        assert all(f"{parameter}:" in documented for parameter in inspect.signature(function).parameters)
