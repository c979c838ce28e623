"""Without a network, and with the VAE or the Inception weights absent: told at once, by file, place and option."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import python
from support.tiny import save_latent_run
from support.vae import save_tiny_vae

from dis_cli.checkpoints.store import write_checkpoint
from dis_cli.codecs.locate import CONFIG, WEIGHTS
from dis_cli.config.backbones import DisConfig
from dis_cli.config.schema import DataConfig, RunConfig
from dis_cli.models import DiS

TOUCHED_THE_NETWORK = 77
HUB_ID = "stabilityai/sd-vae-ft-ema"
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"

# Python announces what is done with sockets, whatever library does it. Torch takes seconds to import.
SCRIPT = f"""
import os, sys

REACHING_OUT = {{"connect", "getaddrinfo", "gethostbyname", "gethostbyaddr", "sendto", "sendmsg"}}

def watch(event, arguments):
    if event.startswith("socket.") and event.removeprefix("socket.") in REACHING_OUT:
        os.write(2, f"{{event}} {{arguments}}".encode())
        os._exit({TOUCHED_THE_NETWORK})

sys.addaudithook(watch)
from dis_cli.cli.app import run

status = run(sys.argv[1:])
print("slow:", *sorted({{"torch", "diffusers", "torchvision", "torch_fidelity"}} & set(sys.modules)))
sys.exit(status)
"""


def said(folder: Path, *arguments: object, slow: bool = False) -> str:
    """What the command writes that must fail with exit status 1 and leave ``folder`` alone."""
    before = sorted(folder.rglob("*"))
    # An empty cache, and nothing that would keep the hub's library offline.
    done = python(
        "-c",
        SCRIPT,
        *map(str, arguments),
        HF_HOME=str(folder / "hf"),
        TORCH_HOME=str(folder / "torch"),
        HF_HUB_OFFLINE="0",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("error:") == 1
    assert done.stderr.count("hint:") == 1
    assert slow or done.stdout == "slow:\n"
    assert sorted(folder.rglob("*")) == before
    return done.stderr


def save_folder_run(folder: Path) -> Path:
    """A run of an untrained model of the pixels in a folder of images."""
    config = RunConfig(model=DisConfig(image_size=8, embed_dim=16, depth=3), data=DataConfig(path=folder))
    write_checkpoint(folder / "checkpoints", 1, {"ema": {}}, {"config": config.model_dump(mode="json")})
    return folder


def save_published(path: Path) -> Path:
    model = DiS(image_size=8, patch_size=4, in_channels=4, embed_dim=16, depth=3)
    torch.save({"ema": model.state_dict()}, path)
    return path


def assert_names_the_vae(text: str, vae: str) -> None:
    assert f"`{vae}`" in text
    for part in (CONFIG, WEIGHTS, "`--vae DIR`"):
        assert part in text


def as_run(folder: Path) -> Path:
    return folder


def as_checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def as_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000001"


@pytest.mark.parametrize("place", [as_run, as_checkpoints, as_checkpoint])
def test_sample_with_the_vae_of_the_run_absent(place: Callable[[Path], Path], tmp_path: Path) -> None:
    run = save_latent_run(tmp_path / "run", HUB_ID)
    assert_names_the_vae(said(tmp_path, "sample", "--ckpt", place(run), "--out", tmp_path / "out"), HUB_ID)


@pytest.mark.parametrize("vae", ["owner/name", "owner/name@main", "/nowhere/sd-vae", "./sd-vae", "sd-vae"])
def test_sample_with_the_vae_given_absent(vae: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    run = save_latent_run(tmp_path / "run", str(tmp_path / "there"))
    text = said(tmp_path, "sample", "--ckpt", run, "--out", tmp_path / "out", "--vae", vae)
    assert_names_the_vae(text, vae)
    text = said(tmp_path, "sample", "--ckpt", run, "--out", tmp_path / "out", f"codec.vae={vae}")
    assert_names_the_vae(text, vae)


def test_sample_of_a_published_file(tmp_path: Path) -> None:
    file = save_published(tmp_path / "published.pt")
    command = ["sample", "--ckpt", file, "--out", tmp_path / "out"]
    assert_names_the_vae(said(tmp_path, *command, "--vae", "./sd-vae"), "./sd-vae")
    # That this one needs a VAE is in its weights, which torch reads.
    assert_names_the_vae(said(tmp_path, *command, slow=True), HUB_ID)


def test_eval_fid_with_the_inception_weights_absent(tmp_path: Path) -> None:
    for run in (save_folder_run(tmp_path / "pixels"), save_latent_run(tmp_path / "latents", HUB_ID)):
        text = said(tmp_path, "eval-fid", "--ckpt", run, "--metrics", "fid")
        assert INCEPTION_FILE in text
        assert "`--inception PATH`" in text


def test_eval_fid_with_the_inception_weights_given_absent(tmp_path: Path) -> None:
    runs = (
        save_folder_run(tmp_path / "pixels"),
        save_latent_run(tmp_path / "latents", HUB_ID),
        save_published(tmp_path / "published.pt"),
    )
    for run in runs:
        text = said(tmp_path, "eval-fid", "--ckpt", run, "--inception", tmp_path / "inception.pth", "--dry-run")
        assert f"`{tmp_path / 'inception.pth'}`" in text
        assert INCEPTION_FILE in text
        assert "`--inception PATH`" in text


def test_eval_fid_with_the_vae_absent(tmp_path: Path) -> None:
    (tmp_path / "inception.pth").write_bytes(b"")
    run = save_latent_run(tmp_path / "run", HUB_ID)
    command = ["eval-fid", "--inception", tmp_path / "inception.pth", "data.source=folder", "--data", tmp_path]
    assert_names_the_vae(said(tmp_path, *command, "--ckpt", run), HUB_ID)
    assert_names_the_vae(said(tmp_path, *command, "--ckpt", run, "--vae", "sd-vae"), "sd-vae")
    file = save_published(tmp_path / "published.pt")
    assert_names_the_vae(said(tmp_path, *command, "--ckpt", file, "--vae", "owner/name"), "owner/name")


def test_encode_latents_with_the_vae_absent(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for vae in (HUB_ID, "./sd-vae"):
        command = ["encode-latents", "--data", tmp_path / "images", "--vae", vae, "--out", tmp_path / "out"]
        assert_names_the_vae(said(tmp_path, *command), vae)


@pytest.mark.long
def test_a_vae_that_is_there_needs_no_network(tmp_path: Path) -> None:
    run = save_latent_run(tmp_path / "run", str(save_tiny_vae(tmp_path / "vae")))
    (tmp_path / "images" / "class").mkdir(parents=True)
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "images" / "class" / "0.png")
    commands = [
        ["sample", "--ckpt", run, "-n", "1", "--out", tmp_path / "samples"],
        [
            "encode-latents",
            "--data",
            tmp_path / "images",
            "--vae",
            tmp_path / "vae",
            "--out",
            tmp_path / "latents",
            "--image-size",
            "16",
        ],
    ]
    for command in commands:
        done = python("-c", SCRIPT, *map(str, command), HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0")
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "samples" / "samples.json").read_text())["num_images"] == 1


def test_the_watch_on_the_network_works() -> None:
    done = python(
        "-c", SCRIPT.replace("status =", "import socket; socket.create_connection(('localhost', 9)); status =")
    )
    assert done.returncode == TOUCHED_THE_NETWORK, done.stderr
