"""Latents from images to samples: encode, train on them, continue, and decode what is sampled."""

import json
import shutil
import time

import pytest
from PIL import Image
from support.inception import save_random_inception
from support.latents import SIZE, Fork, content, encode_slowly, finished_shards, save_images, wait_until
from support.tiny import dis, result
from support.vae import DOWNSAMPLE, LATENT_CHANNELS, save_tiny_vae

from dis_cli.checkpoints.store import latest_checkpoint, read_checkpoint
from dis_cli.codecs.locate import locate_vae
from dis_cli.data.latents.source import LatentSource
from dis_cli.runs.folder import read_events
from dis_cli.runtime import faults


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return save_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images") / "images", 8)


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory):
    return save_tiny_vae(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, images, vae):
    """A run on latents, made by the commands alone."""
    folder = tmp_path_factory.mktemp("latent-run")
    latents, out = folder / "latents", folder / "run"
    encode = ["encode-latents", "--data", images, "--vae", vae, "--out", latents, "--image-size", SIZE, "-q"]
    assert dis(*encode, "--no-check") == 0
    assert dis("train", "--preset", "dis-l-imagenet256", "--data", latents, "--out", out, "-q", *SETTINGS) == 0
    return out


SETTINGS = [
    f"model.image_size={SIZE // DOWNSAMPLE}",
    f"codec.downsample={DOWNSAMPLE}",
    "model.num_classes=2",
    "model.embed_dim=16",
    "model.depth=3",
    "train.steps=3",
    "train.batch_size=4",
    "sample.steps=2",
]


def test_classes_are_known_by_name_and_latents_become_images(run, vae, tmp_path) -> None:
    assert [event["step"] for event in read_events(run / "events.jsonl") if event["event"] == "step"] == [1, 2, 3]
    command = ["sample", "--ckpt", run, "--vae", vae, "--out", tmp_path / "out", "-n", "2", "-q"]
    assert dis(*command, "--class", "dog", "--cfg-scale", "1.5") == 0
    data = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [record["class"] for record in data["images"]] == [1, 1]
    for record in data["images"]:
        with Image.open(tmp_path / "out" / record["file"]) as image:
            assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_an_unknown_class_is_guessed(run, vae, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--vae", vae, "--class", "dgo") == 2
    assert "Did you mean `dog`?" in capsys.readouterr().err


def test_an_absent_vae_says_what_to_put_where(run, tmp_path, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--out", tmp_path / "out", "-n", "1") == 1
    error = capsys.readouterr().err
    assert "stabilityai/sd-vae-ft-ema" in error
    assert "--vae DIR" in error
    assert not (tmp_path / "out").exists()


def test_latents_of_another_shape_are_refused(run, tmp_path, capsys) -> None:
    latents = run.parent / "latents"
    command = ["train", "--preset", "dis-l-imagenet256", "--data", latents, "--out", tmp_path / "run"]
    assert dis(*command, *SETTINGS, "model.image_size=4") == 2
    error = capsys.readouterr().err
    assert f"{LATENT_CHANNELS} x 8 x 8" in error
    assert f"{LATENT_CHANNELS} x 4 x 4" in error
    assert not (tmp_path / "run").exists()


def test_latents_of_images_of_another_size_are_refused(run, tmp_path, capsys) -> None:
    command = ["train", "--preset", "dis-l-imagenet256", "--data", run.parent / "latents", "--out", tmp_path / "run"]
    assert dis(*command, *SETTINGS, "codec.downsample=4") == 2
    error = capsys.readouterr().err
    assert "of images of 16 pixels" in error
    assert "decodes to 32" in error
    assert "Set codec.downsample=2" in error
    assert not (tmp_path / "run").exists()


def test_latents_of_another_scale_are_refused(run, tmp_path, capsys) -> None:
    command = ["train", "--preset", "dis-l-imagenet256", "--data", run.parent / "latents", "--out", tmp_path / "run"]
    assert dis(*command, *SETTINGS, "codec.scale=0.5") == 2
    error = capsys.readouterr().err
    assert "0.18215" in error
    assert "0.5" in error
    assert not (tmp_path / "run").exists()


def assert_names_both(error, *vaes) -> None:
    """Of VAEs with the same configuration, the weights are told apart."""
    for vae in vaes:
        assert f"`{vae}`" in error
        assert locate_vae(str(vae)).identity[1][:12] in error
    assert "configuration: sha256" not in error


def test_latents_made_by_another_vae_are_refused(run, vae, other_vae, tmp_path, capsys) -> None:
    command = ["train", "--preset", "dis-l-imagenet256", "--data", run.parent / "latents", "--out", tmp_path / "run"]
    assert dis(*command, *SETTINGS, f"codec.vae={other_vae}") == 2
    assert_names_both(capsys.readouterr().err, vae, other_vae)
    assert not (tmp_path / "run").exists()


def test_another_vae_than_the_run_was_trained_with_is_refused(run, vae, other_vae, tmp_path, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--vae", other_vae, "--out", tmp_path / "out", "-n", 1) == 2
    assert_names_both(capsys.readouterr().err, vae, other_vae)
    assert not (tmp_path / "out").exists()
    # the same one in another place will do
    moved = shutil.copytree(vae, tmp_path / "moved")
    assert dis("sample", "--ckpt", run, "--vae", moved, "--out", tmp_path / "out", "-n", 1, "-q") == 0


def test_a_vae_that_does_not_fit_the_model_is_refused(run, vae, tmp_path, capsys) -> None:
    command = ["sample", "--ckpt", run, "--vae", vae, "--out", tmp_path / "out", "-n", 1]
    assert dis(*command, "codec.downsample=4") == 2
    error = capsys.readouterr().err
    assert "one pixel for 2x2 of the image" in error
    assert "codec.downsample 4" in error


def test_unfinished_latents_are_refused(images, vae, tmp_path, capsys) -> None:
    latents = tmp_path / "latents"
    encode = ["encode-latents", "--data", images, "--vae", vae, "--out", latents, "--image-size", SIZE, "-q"]
    assert dis(*encode, "--shard-size", 0.009, "--batch-size", 2, "--part", "1/2") == 0
    command = ["train", "--preset", "dis-l-imagenet256", "--data", latents, "--out", tmp_path / "run", *SETTINGS]
    assert dis(*command) == 1
    error = capsys.readouterr().err
    assert f"`{latents}` are unfinished" in error
    assert "hint: Run the same `dis encode-latents` again" in error
    assert not (tmp_path / "run").exists()


def from_images(images, vae, out) -> list[str]:
    command = ["train", "--preset", "dis-l-imagenet256", "--data", images, "--out", out, "-q", *SETTINGS]
    return [*map(str, command), "data.source=folder", f"codec.vae={vae}", "train.save_every=1", "train.steps=6"]


def test_a_run_on_images_encodes_them_once(images, vae, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "run"
    assert dis(*from_images(images, vae, out)) == 0
    source = LatentSource(out / "latents", image_size=SIZE // DOWNSAMPLE, channels=LATENT_CHANNELS)
    assert source.labels.tolist() == [0] * 4 + [1] * 4
    assert (source.settings.vae.name, source.settings.mirrored) == (str(vae), True)
    before, shards = content(out / "latents"), finished_shards(out / "latents")
    with monkeypatch.context() as patch:
        patch.setattr("dis_cli.workflows.encode_latents._moments", None)
        assert dis(*from_images(images, vae, out), "train.steps=7") == 0
    assert latest_checkpoint(out / "checkpoints")[0].step == 7
    assert (content(out / "latents"), finished_shards(out / "latents")) == (before, shards)
    # it knows its classes and its VAE
    assert dis("sample", "--ckpt", out, "--out", tmp_path / "out", "-n", 1, "--class", "dog", "-q") == 0
    changed = shutil.copytree(images, tmp_path / "changed")
    (changed / "cat" / "00.png").unlink()
    capsys.readouterr()
    assert dis(*from_images(changed, vae, out)) == 2
    assert "source: '" in capsys.readouterr().err


def test_a_run_on_images_that_is_killed_ends_as_one_that_was_not(images, vae, tmp_path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert dis(*from_images(images, vae, straight)) == 0

    encoding = Fork(lambda: encode_slowly(60, from_images(images, vae, killed)), tmp_path / "said")
    wait_until((killed / "latents" / ".progress" / "shard-00000.tmp").exists)
    encoding.kill()
    assert not (killed / "latents" / "manifest.json").exists()

    def train_slowly() -> int:
        def wait(point: str, step: int, **what: object) -> None:
            time.sleep(0.2)

        faults.inject(wait)
        return dis(*from_images(images, vae, killed))

    training = Fork(train_slowly, tmp_path / "said")
    wait_until(lambda: any((killed / "checkpoints").glob("step-*2")))
    training.kill()
    shards = finished_shards(killed / "latents")
    assert dis(*from_images(images, vae, killed)) == 0
    assert finished_shards(killed / "latents") == shards
    assert content(killed / "latents") == content(straight / "latents")
    expected, got = (read_checkpoint(run / "checkpoints" / "step-00000006") for run in (straight, killed))
    for group, tensors in expected.tensors.items():
        for name, tensor in tensors.items():
            assert tensor.equal(got.tensors[group][name]), (group, name)
    assert expected.meta["vae"] == got.meta["vae"]


def test_a_run_on_images_whose_vae_does_not_fit_is_refused(images, vae, tmp_path, capsys) -> None:
    assert dis(*from_images(images, vae, tmp_path / "run"), "codec.downsample=4") == 2
    error = capsys.readouterr().err
    assert "one pixel for 2x2 of the image" in error
    assert "codec.downsample 4" in error
    assert not (tmp_path / "run").exists()


def test_a_run_on_images_needs_a_vae(images, tmp_path, capsys) -> None:
    assert dis(*from_images(images, "none", tmp_path / "run")) == 2
    assert "no VAE was given" in capsys.readouterr().err
    assert dis(*from_images(images, tmp_path / "absent", tmp_path / "run")) == 1
    assert f"VAE not found: there is no folder `{tmp_path / 'absent'}`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_latents_are_no_reference_for_a_score(run, vae, inception, capsys) -> None:
    assert dis("eval-fid", "--ckpt", run, "--metrics", "fid") == 1
    assert "--inception PATH" in capsys.readouterr().err
    # What needs no weights, and no VAE, is measured on the latents.
    assert dis("eval-fid", "--ckpt", run, "--json") == 0
    captured = capsys.readouterr()
    assert "measuring denoising_loss, which needs none, in place of FID" in captured.err
    assert json.loads(captured.out)["denoising_loss"] > 0
    assert dis("eval-fid", "--ckpt", run, "--inception", inception, "--vae", vae) == 2
    assert "data.source=folder data.path=DIR" in capsys.readouterr().err


@pytest.mark.long
def test_fid_of_decoded_latents_against_the_images(run, images, vae, inception, tmp_path, capsys) -> None:
    command = ["eval-fid", "--ckpt", run, "--vae", vae, "--inception", inception, "--json", "data.source=folder"]
    scores = []
    for name in ("a.json", "b.json"):
        assert dis(*command, "--data", images, "--num-samples", "4", "--out", tmp_path / name) == 0
        captured = capsys.readouterr()
        scores.append(json.loads(captured.out))
        assert "not the published Inception" in captured.err
    assert scores[0]["frechet_inception"] == scores[1]["frechet_inception"] > 0
    assert "fid" not in scores[0]
    assert scores[0]["features"] == "inception-v3-2048"
    assert scores[0]["num_samples"] == 4
    assert "frechet_digits" not in scores[0]
    # Fewer generated images, another distance: the score is of these images.
    assert dis(*command, "--data", images, "--num-samples", "2", "--out", tmp_path / "c.json") == 0
    assert result(capsys)["frechet_inception"] != scores[0]["frechet_inception"]


def test_the_bundled_digits_go_all_the_way(tmp_path, capsys) -> None:
    """Encoded, trained on, decoded and scored with nothing but the package."""
    small = ["model.embed_dim=16", "model.depth=3", "train.steps=2", "train.batch_size=4", "sample.steps=2"]
    run = tmp_path / "run"
    assert dis("train", "--preset", "dis-s-digits-latent", "--out", run, "-q", *small) == 0
    assert len(list((run / "latents").glob("shard-*"))) == 1
    assert dis("sample", "--ckpt", run, "--class", "all", "-n", 10, "--out", tmp_path / "samples", "-q") == 0
    with Image.open(next((tmp_path / "samples").glob("*class-3.png"))) as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    capsys.readouterr()
    assert dis("eval-fid", "--ckpt", run, "--num-samples", 20, "--json") == 0
    score = result(capsys)
    assert score["features"] == "digits-cnn-64"
    assert score["class_accuracy_real"] > 0.98
    assert score["frechet_digits"] > score["class_gaussians"] > score["floor"] > 0
