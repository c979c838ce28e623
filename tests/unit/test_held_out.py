"""The images that a run is not trained on, and what they are noised with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.held_out import CPU, losses, tiny

from dis_cli.codecs.vae import VaeCodec
from dis_cli.config.overrides import apply_overrides
from dis_cli.config.presets import load_preset
from dis_cli.data.held_out import (
    Part,
    held_out_batch,
    held_out_part,
    held_out_places,
    spread_places,
    training_part,
    unaugmented,
)
from dis_cli.data.images.files import FileSource, FolderFiles
from dis_cli.data.published.digits import DigitsSource
from dis_cli.data.source import BatchSource
from dis_cli.diffusion.timesteps import ContinuousTimesteps
from dis_cli.errors import MismatchError, UsageError
from dis_cli.runtime.device import Process
from dis_cli.workflows.build import build_codec, build_model, build_objective, build_source
from dis_cli.workflows.held_out import held_out, trained_on


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    levels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    return tmp_path


def test_a_share_is_drawn_by_the_seed_alone() -> None:
    drawn = held_out_places(1000, 0.1, seed=3)
    assert len(drawn) == len(set(drawn.tolist())) == 100
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() == held_out_places(1000, 0.1, seed=3).tolist()
    assert drawn.tolist() != held_out_places(1000, 0.1, seed=4).tolist()
    # Of more, all of these.
    assert {*drawn.tolist()} < {*held_out_places(1000, 0.2, seed=3).tolist()}
    assert [len(held_out_places(5, share, seed=0)) for share in (0.001, 0.999)] == [1, 4]
    for count, share in ((1, 0.5), (10, 0.0), (10, 1.0)):
        with pytest.raises(ValueError, match=f"got {share} of {count}"):
            held_out_places(count, share, seed=0)


def test_the_two_parts_are_the_whole() -> None:
    source = DigitsSource("train")
    kept, held = training_part(source, 0.2, seed=1), held_out_part(source, 0.2, seed=1)
    assert isinstance(kept, Part)
    assert isinstance(held, Part)
    assert sorted([*kept.places, *held.places]) == list(range(len(source)))
    assert (len(kept) + len(held), len(held)) == (len(source), round(0.2 * len(source)))
    assert len({source.fingerprint, kept.fingerprint, held.fingerprint}) == 3
    place = int(held_out_places(len(source), 0.2, seed=1)[7])
    assert held.load(7, None).equal(source.load(place, None))
    assert held.labels[7] == source.labels[place]
    with pytest.raises(IndexError):
        held.load(len(held), None)


def test_only_training_samples_are_augmented(folder: Path) -> None:
    source = FileSource(FolderFiles(folder), image_size=8, hflip=True)
    kept, held = training_part(source, 0.3, seed=0), held_out_part(source, 0.3, seed=0)
    for part, changes in ((kept, True), (held, False), (unaugmented(source), False)):
        seen = [part.load(0, np.random.default_rng(seed)) for seed in range(20)]
        assert any(not image.equal(part.load(0, None)) for image in seen) == changes


def test_bad_images_change_nothing_for_the_others(folder: Path) -> None:
    source = FileSource(FolderFiles(folder), image_size=8)

    def held(some: FileSource) -> set[str]:
        part = held_out_part(some, 0.5, seed=0)
        return {part.sample_name(index) for index in range(len(part))}

    assert held(source.without([2, 5])) == held(source) - {source.sample_name(2), source.sample_name(5)}


def test_a_part_gives_many_samples_at_once_as_its_source_does(folder: Path) -> None:
    kept = training_part(DigitsSource("train"), 0.1, seed=0)
    assert isinstance(kept, BatchSource)
    rngs = map(np.random.default_rng, range(3))
    assert kept.load_batch([4, 0, 9], rngs).equal(torch.stack([kept.load(index, None) for index in (4, 0, 9)]))
    assert not isinstance(training_part(FileSource(FolderFiles(folder), image_size=8), 0.1, seed=0), BatchSource)


def test_noise_is_a_function_of_seed_and_image() -> None:
    source = unaugmented(DigitsSource("test"))
    together = held_out_batch(source, [3, 50, 7], seed=5, num_timesteps=1000)
    alone = held_out_batch(source, [50], seed=5, num_timesteps=1000)
    assert alone.noise[0].equal(together.noise[1])
    assert alone.t[0] == together.t[1]
    assert alone.labels[0] == source.labels[50] == together.labels[1]
    assert not held_out_batch(source, [50], seed=6, num_timesteps=1000).noise.equal(alone.noise)
    many = held_out_batch(source, range(300), seed=5, num_timesteps=10)
    assert {*many.t.tolist()} == set(range(10))
    assert abs(float(many.noise.mean())) < 0.03
    assert float(many.noise.std()) == pytest.approx(1, abs=0.03)


def test_timesteps_between_two_are_those_of_the_runs_own_draw() -> None:
    draw = ContinuousTimesteps("logit_normal", 1000, mean=-2.0, std=0.5)
    source = unaugmented(DigitsSource("test"))
    batch = held_out_batch(source, range(300), seed=5, num_timesteps=1000, draw_timestep=draw)
    assert batch.t.dtype == torch.float64
    logits = torch.logit((batch.t + 1) / 1000)
    # Of 300 draws, within five standard errors.
    assert float(logits.mean()) == pytest.approx(-2.0, abs=0.15)
    assert float(logits.std()) == pytest.approx(0.5, abs=0.11)
    assert batch.t[50] == held_out_batch(source, [50], seed=5, num_timesteps=1000, draw_timestep=draw).t[0]


def test_a_runs_own_loss_is_at_the_timesteps_that_it_trains_at() -> None:
    settings = ["data.validation=test", "diffusion.schedule=rectified_flow", "diffusion.prediction=velocity"]
    settings += ["diffusion.timesteps=logit_normal", "diffusion.timestep_mean=2", "diffusion.timestep_std=0.1"]
    settings += ["sample.sampler=auto", "diffusion.variance=fixed_small"]
    config = tiny(*settings)
    draw = ContinuousTimesteps("logit_normal", 1000, mean=2.0, std=0.1)
    batch = held_out_batch(unaugmented(DigitsSource("test")), range(11), seed=1, num_timesteps=1000, draw_timestep=draw)
    with torch.no_grad():
        expected = float(build_objective(config).loss(build_model(config).eval(), batch))
    assert losses(Process(CPU), *settings).loss == pytest.approx(expected, rel=1e-5)


def test_places_are_spread() -> None:
    assert spread_places(10, 4) == [0, 2, 5, 7]
    assert spread_places(3, 10) == [0, 1, 2]


def test_what_settings_hold_out(folder: Path) -> None:
    digits = build_source(tiny())
    assert held_out(tiny(), digits, None, CPU) is None
    assert trained_on(tiny(), digits) is digits
    test = held_out(tiny("data.validation=test"), digits, None, CPU)
    assert test is not None
    assert len(test) == len(DigitsSource("test"))
    shared = tiny("data.validation=0.1")
    share = held_out(shared, digits, None, CPU)
    assert share is not None
    assert len(share) + len(trained_on(shared, digits)) == len(digits)
    others = tiny(f"data.validation={folder}", "model.num_classes=0", "sample.cfg_scale=1")
    found = held_out(others, digits, None, CPU)
    assert found is not None
    assert (len(found), found.channels, found.image_size) == (10, 1, 8)
    with pytest.raises(MismatchError, match=r"The model has 10 classes, the held-out images .* 0"):
        held_out(tiny(f"data.validation={folder}"), digits, None, CPU)


def test_images_of_a_run_on_latents_are_encoded() -> None:
    config = apply_overrides(load_preset("dis-s-digits-latent"), ["data.validation=test"])
    images = DigitsSource("test", image_size=32, channels=3)
    found = held_out(config, images, None, CPU)
    assert found is not None
    assert (len(found), found.channels, found.image_size) == (len(images), 4, 8)
    codec = build_codec(config, CPU)
    assert isinstance(codec, VaeCodec)
    mean, _ = codec.moments(images.load(3, None)[None])
    torch.testing.assert_close(found.load(3, None), config.codec.scale * (mean[0] - codec.shift))


def test_data_without_a_test_split_are_refused(folder: Path) -> None:
    settings = ["data.source=folder", f"data.path={folder}", "model.num_classes=0", "sample.cfg_scale=1"]
    config = tiny(*settings, "data.validation=test")
    with pytest.raises(UsageError, match="have no test split"):
        held_out(config, build_source(config), None, CPU)


def test_a_signal_ends_it() -> None:
    process = Process(CPU)
    process.stop.requested = 15
    assert losses(process) == 15
