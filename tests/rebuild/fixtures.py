"""Writes the files that later versions must open: ``python tests/rebuild/fixtures.py DIS FOLDER [--few]``.

``DIS`` is the program of the version whose files these are to be; nothing else of it is used. ``FOLDER`` is made anew,
commonly ``tests/fixtures/VERSION``; with ``--few`` without exports, latents and statistics. It takes two minutes on one
core. Paths that a version records are absolute in some: the files then name the folder that the work is done in, which
``DIS_FIXTURES_AT`` sets (a path that no machine gives away, such as ``/home/user/dis``).

    run/                stopped in the middle, and scored there; imported/ is a run made of published.pt
    latent-run/         the same of a run that encodes images/ itself
    export.safetensors, export.pt, export/, published.pt: the model of run/
    statistics.npz      a reference of the digits
    samples.unfinished  killed before all were generated; samples.npz is what it would have come to
    latents/            killed before all shards were encoded
    expected.json       losses of both runs when they are continued, scores and hashes, all by this version
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

TRAIN = ["train", "--device", "cpu", "-q", "engine=torch", "train.precision=fp32", "train.batch_size=8"]
TRAIN += ["train.steps=9", "train.save_every=2", "train.keep_last=1", "train.warmup_steps=2", "train.ema_warmup=false"]
TRAIN += ["train.ema_decay=0.95", "train.ema_more=0.5", "model.depth=3", "model.d_state=4", "model.drop_path=0.1"]
RUNS = {
    "run": ["--preset", "dis-xs-digits", "model.embed_dim=16"],
    "latent-run": [
        *("--preset", "dis-s-digits-latent", "data.source=folder", "data.path=images", "data.hflip=true"),
        *("data.num_workers=0", "model.embed_dim=8", "model.num_classes=2"),
    ],
}
SAMPLE = ["sample", "--ckpt", "run", "-n", "24", "--steps", "20", "--device", "cpu", "-q", "sample.batch_size=4"]
ENCODE = ["encode-latents", "--data", "images", "--vae", "digits", "--image-size", "32", "--out", "latents"]
ENCODE += ["--shard-size", "0.006", "--batch-size", "1", "--num-workers", "1", "--device", "cpu", "-q"]
SCORE = ["eval-fid", "--ckpt", "run", "-n", "16", "--sampler", "ddim", "--steps", "2", "--device", "cpu"]
# What a published file does not say of itself.
PUBLISHED = ["codec.kind=pixel", "data.source=digits", "data.hflip=false", "diffusion.schedule=cosine"]
PUBLISHED += ["diffusion.prediction=v", "diffusion.variance=fixed_small", "sample.precision=fp32", "engine=torch"]
EXPORTS = ("export.safetensors", "export.pt", "export")


def weights_sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """Of names and bits, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def losses(run: Path) -> dict[str, float]:
    """Step -> loss of the last time it was taken."""
    events = run / "events.jsonl"
    # The last line may be written at this moment.
    lines = events.read_text().splitlines(keepends=True) if events.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {str(record["step"]): record["loss"] for record in records if record["event"] == "step"}


class Version:
    """A version's program, in a folder to work in.

    Args:
        program: Path of ``dis``.
        folder: The working directory.
        cache: For what it keeps of images.
    """

    def __init__(self, program: Path, folder: Path, cache: Path) -> None:
        self._program = str(program.absolute())
        self._folder = folder
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "DIS_CACHE_DIR": str(cache)}

    def __call__(self, *arguments: str) -> str:
        """What a command prints that must succeed."""
        command = [self._program, *arguments]
        done = subprocess.run(command, cwd=self._folder, env=self._environment, check=True, stdout=subprocess.PIPE)
        return done.stdout.decode()

    def end(self, number: int, reached: Callable[[], bool], *arguments: str) -> None:
        """Start a command and send it a signal once something is reached; it must not have ended by itself."""
        process = subprocess.Popen([self._program, *arguments], cwd=self._folder, env=self._environment)
        while process.poll() is None and not reached():
            time.sleep(0.001)
        process.send_signal(number)
        if process.wait() == 0 or not reached():
            raise SystemExit(f"`dis {arguments[0]}` ended by itself: start again")


def save_images(folder: Path, count: int = 24) -> None:
    """Blocks of random colours, 32x32, in two classes."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / ("even", "odd")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(path)


def write(dis: Version, at: Path, *, few: bool) -> None:
    """Write everything to the folder ``at``, in which ``dis`` works."""
    save_images(at / "images")
    for name, arguments in RUNS.items():
        dis.end(signal.SIGTERM, lambda run=at / name: "4" in losses(run), *TRAIN, "--out", name, *arguments)
    dis(*SCORE, "-q")
    unfinished = at / "samples.unfinished"
    dis.end(signal.SIGKILL, lambda: len(list(unfinished.glob("part-*"))) >= 2, *SAMPLE, "--out", "samples")
    dis(*SAMPLE, "--out", "samples.npz")
    [checkpoint] = (at / "run" / "checkpoints").iterdir()
    if not few:
        shards = at / "latents" / ".progress"
        dis.end(signal.SIGKILL, lambda: len(list(shards.glob("shard-*.json"))) >= 3, *ENCODE)
        groups = {group: load_file(checkpoint / f"{group}.safetensors") for group in ("model", "ema")}
        torch.save(
            groups | {"opt": {}, "args": argparse.Namespace(model="DiS", latent_space=False)}, at / "published.pt"
        )
        dis("checkpoint", "import", "published.pt", "--out", "imported", "-q", *PUBLISHED)
        for name in EXPORTS:
            dis("checkpoint", "export", "run", "--out", name, "-q")
        dis("eval-fid", "stats", "--preset", "dis-xs-digits", "--out", "statistics.npz", "-q")
    expected = {
        "score": json.loads(next((at / "run" / "evaluations").glob("*.json")).read_bytes()),
        "weights": {
            group: weights_sha256(load_file(checkpoint / f"{group}.safetensors"))
            for group in ("model", "ema", "ema_more_0", "optimizer")
        },
        "losses": {name: _continued(dis, at, name) for name in RUNS},
    }
    (at / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _continued(dis: Version, at: Path, name: str) -> dict[str, float]:
    """The losses of a run that is continued to its end, as a copy."""
    kept = at.with_name(f"{at.name}-kept")
    shutil.copytree(at / name, kept)
    dis(*TRAIN, "--out", name, *RUNS[name])
    found = losses(at / name)
    shutil.rmtree(at / name)
    shutil.move(kept, at / name)
    return found


def without_machine(folder: Path) -> None:
    """Take out what is of this machine only: locks, names of its system, and where the program is."""
    for path in folder.rglob("*.lock"):
        path.unlink()
    for path in folder.rglob("run.json"):
        facts: dict[str, Any] = json.loads(path.read_bytes())
        # That of an imported run says less.
        if "command" in facts:
            facts |= {"command": ["dis", *facts["command"][1:]], "platform": sys.platform}
        path.write_text(json.dumps(facts, indent=2) + "\n")


def main(arguments: Iterable[str] | None = None) -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description="Write the files that later versions must open.")
    parser.add_argument("program", type=Path, metavar="DIS", help="the program of the version")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write; must not be there")
    parser.add_argument("--few", action="store_true", help="runs and samples only")
    asked = parser.parse_args(None if arguments is None else list(arguments))
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(os.environ.get("DIS_FIXTURES_AT", f"{temporary}/work"))
        at.mkdir(parents=True)
        try:
            write(Version(asked.program, at, Path(temporary, "cache")), at, few=asked.few)
            without_machine(at)
            shutil.copytree(at, asked.folder)
        finally:
            shutil.rmtree(at)


if __name__ == "__main__":
    main()
