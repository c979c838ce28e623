"""`dis sample`: images that depend on their seed and class alone, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import dis, result, train

from dis_cli.checkpoints.store import list_checkpoints, write_checkpoint
from dis_cli.config.backbones import DisConfig
from dis_cli.config.generation import SampleConfig
from dis_cli.config.presets import dump_toml
from dis_cli.config.schema import DataConfig, RunConfig, TrainConfig
from dis_cli.errors import ConfigError
from dis_cli.workflows.build import build_model
from dis_cli.workflows.load.opened import open_checkpoint
from dis_cli.workflows.load.saved import read_saved


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(folder, "train.steps=2", "sample.steps=3") == 0
    return folder


def sample(run, out, *arguments):
    assert dis("sample", "--ckpt", run, "--out", out, "-q", *arguments) == 0
    return json.loads((out / "samples.json").read_text())


def pixels(folder, record) -> np.ndarray:
    with Image.open(folder / record["file"]) as image:
        return np.array(image)


def test_images_grid_and_settings(run, tmp_path, capsys) -> None:
    data = sample(run, tmp_path / "out", "--class", "all", "-n", "20", "--seed", "5")
    assert [record["seed"] for record in data["images"]] == list(range(5, 25))
    # Classes take turns.
    assert [record["class"] for record in data["images"]] == [index % 10 for index in range(20)]
    assert data["sample"]["steps"] == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "grid.png",
        "samples.json",
        *(record["file"] for record in data["images"]),
    }
    assert pixels(tmp_path / "out", data["images"][0]).shape == (8, 8)
    height, width, _ = pixels(tmp_path / "out", {"file": "grid.png"}).shape
    # A row of two tiles for each of ten classes, and a name before each.
    assert height == 4 + 10 * 68
    assert 4 + 2 * 68 < width < 4 + 3 * 68
    assert f"grid    {tmp_path / 'out' / 'grid.png'}" in capsys.readouterr().out


def test_an_image_depends_on_its_seed_and_class_only(run, tmp_path) -> None:
    many = sample(run, tmp_path / "many", "-n", "12", "--class", "3,4")
    parts = sample(run, tmp_path / "parts", "-n", "12", "--class", "3,4", "sample.batch_size=5")
    alone = sample(run, tmp_path / "alone", "-n", "1", "--class", "4", "--seed", "7")
    for a, b in zip(many["images"], parts["images"], strict=True):
        # The sums of a matrix product may be ordered by the batch's size: one grey level at most, hardly ever.
        difference = np.abs(pixels(tmp_path / "many", a).astype(int) - pixels(tmp_path / "parts", b))
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.02
    difference = np.abs(
        pixels(tmp_path / "many", many["images"][7]).astype(int) - pixels(tmp_path / "alone", alone["images"][0])
    )
    assert difference.max() <= 1
    again = sample(run, tmp_path / "again", "-n", "12", "--class", "3,4")
    for a, b in zip(many["images"], again["images"], strict=True):
        assert np.array_equal(pixels(tmp_path / "many", a), pixels(tmp_path / "again", b))


def test_seeds_and_classes_change_the_image(run, tmp_path) -> None:
    data = sample(run, tmp_path, "-n", "4", "--class", "1")
    images = [pixels(tmp_path, record) for record in data["images"]]
    assert all(not np.array_equal(images[0], image) for image in images[1:])


def test_without_a_class_the_seed_chooses(run, tmp_path) -> None:
    first = sample(run, tmp_path / "a", "-n", "30")
    labels = [record["class"] for record in first["images"]]
    assert len(set(labels)) > 5
    shifted = sample(run, tmp_path / "b", "-n", "10", "--seed", "20")
    assert [record["class"] for record in shifted["images"]] == labels[20:]


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++", "dpm++sde", "unipc", "heun", "euler"])
def test_every_sampler_with_guidance(sampler, run, tmp_path) -> None:
    arguments = ("-n", "2", "--class", "1", "--sampler", sampler, "--steps", "5", "--cfg-scale", "2")
    data = sample(run, tmp_path, *arguments)
    assert data["sample"] | {"sampler": sampler, "steps": 5, "cfg_scale": 2.0} == data["sample"]
    assert (data["model_evaluations"], data["guided_evaluations"]) == (5, 5)


@pytest.mark.parametrize(
    ("arguments", "sampler", "steps"),
    [
        ([], "dpm++", 3),
        # A sampler alone brings its own steps, not those of the run's sampler.
        (["--sampler", "ancestral"], "ancestral", 250),
        (["--sampler", "auto"], "dpm++", 25),
        (["--sampler", "ddim"], "ddim", 50),
        (["--sampler", "heun", "sample.steps=7"], "heun", 7),
        (["--steps", "8"], "dpm++", 8),
        (["sample.steps=auto"], "dpm++", 25),
    ],
)
def test_a_dry_run_tells_the_sampler_and_steps_that_would_run(arguments, sampler, steps, run, tmp_path, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--dry-run", "--json", *arguments) == 0
    data = result(capsys)
    assert (data["sample"]["sampler"], data["sample"]["steps"]) == (sampler, steps)
    assert (data["model_evaluations"], data["guided_evaluations"]) == (steps, 0)
    assert f"_{sampler.replace('+', 'p')}_{steps}_" in data["out"]
    assert dis("eval-fid", "--ckpt", run, "--dry-run", "--json", *arguments) == 0
    data = result(capsys)
    assert (data["sample"]["sampler"], data["sample"]["steps"]) == (sampler, steps)
    assert f"_{sampler.replace('+', 'p')}-{steps}_" in data["result_file"]


def test_options_of_guidance_and_noise(run, tmp_path, capsys) -> None:
    guided = ("--cfg-scale", "2", "--cfg-channels", "3", "--cfg-interval", "0.1,0.6", "--cfg-schedule", "linear")
    assert dis("sample", "--ckpt", run, "--dry-run", "--json", *guided, "--steps", "10") == 0
    data = result(capsys)
    expected = {"cfg_scale": 2.0, "cfg_channels": "first3", "cfg_interval": [0.1, 0.6], "cfg_schedule": "linear"}
    assert data["sample"] | expected == data["sample"]
    # Of 999, 899, ..., 599, 500, ..., 100 those from 599 on, of which none is below 0.1 * 999.
    assert (data["model_evaluations"], data["guided_evaluations"]) == (10, 6)
    assert data["out"].endswith("_cfg-2_first3_from-0.1-to-0.6_linear")
    assert dis("sample", "--ckpt", run, "--dry-run", *guided, "--steps", "10") == 0
    assert "how     dpm++, 10 evaluations, guidance 2 in 6 of them" in capsys.readouterr().out
    assert dis("eval-fid", "--ckpt", run, "--dry-run", "--json", "--sampler", "ddim", "--eta", "0.5") == 0
    data = result(capsys)
    assert data["sample"]["eta"] == 0.5
    assert data["result_file"].endswith("_ddim-50_cfg-1_eta-0.5.json")


def test_noise_and_guidance_change_the_images_and_only_when_asked_for(run, tmp_path) -> None:
    few = ("-n", "2", "--class", "1", "--sampler", "ddim", "--steps", "4")
    settings = {
        "plain": (),
        "again": ("--eta", "0", "--cfg-interval", "0.2,0.8", "--cfg-schedule", "power-cosine"),
        "noise": ("--eta", "1"),
        "guided": ("--cfg-scale", "4"),
        "part": ("--cfg-scale", "4", "--cfg-interval", "0,0.5"),
        "growing": ("--cfg-scale", "4", "--cfg-schedule", "linear"),
    }
    images = {}
    for name, arguments in settings.items():
        data = sample(run, tmp_path / name, *few, *arguments)
        images[name] = pixels(tmp_path / name, data["images"][0]).tobytes()
    assert images.pop("again") == images["plain"]
    assert len(set(images.values())) == len(images)


def test_a_checkpoint_folder_serves_as_well(run, tmp_path) -> None:
    folder = list_checkpoints(run / "checkpoints")[-1]
    assert sample(folder, tmp_path / "out", "-n", "1")["step"] == 2


def test_the_default_folder_is_in_the_run(run, capsys) -> None:
    assert dis("sample", "--ckpt", run, "-n", "2", "--json", "--class", "2") == 0
    data = result(capsys)
    assert data["out"] == str(run / "samples" / "step-00000002_dpmpp_3_seed-0_n-2_class-2")
    # Again: replaced, not refused.
    assert dis("sample", "--ckpt", run, "-n", "2", "--json", "--class", "2") == 0
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-00000002_dpmpp_3_seed-0_n-2_class-2"]


def test_dry_run_writes_nothing(run, tmp_path, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--out", tmp_path / "out", "--dry-run", "--json") == 0
    assert result(capsys)["num_images"] == 16
    assert not (tmp_path / "out").exists()


def test_a_published_checkpoint(tmp_path, capsys) -> None:
    from dis_cli.models import DiS

    torch.manual_seed(0)
    model = DiS(image_size=8, patch_size=2, in_channels=3, embed_dim=32, depth=3, num_classes=300)
    torch.save({"model": model.state_dict(), "ema": model.state_dict()}, tmp_path / "x.pt")
    command = ["sample", "--ckpt", tmp_path / "x.pt", "--out", tmp_path / "out", "--steps", "2", "-q"]
    assert dis(*command, "--class", "207", "-n", "3") == 0
    data = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [record["class"] for record in data["images"]] == [207] * 3
    assert pixels(tmp_path / "out", data["images"][0]).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "status", "message", "hint"),
    [
        (["--class", "10"], 2, "Class 10 is out of range: the model has 10 classes, 0 to 9", ""),
        (["--class", "three"], 2, "Unknown class: `three`", "0 to 9"),
        (["--class", "-1"], 2, "Class -1 is out of range: the model has 10 classes, 0 to 9", ""),
        (["--sampler", "plms"], 2, "got `plms`, allowed: one of auto, ancestral", "`sample.sampler`"),
        (["--sampler", "heun", "--steps", "20"], 2, "cannot take 20 steps, it needs an odd number", "19 or 21"),
        (["--eta", "0.5"], 2, "sample.eta 0.5 is for sample.sampler 'ddim', got 'dpm++'", "set sample.eta to 0"),
        (["--cfg-channels", "4"], 2, "`sample.cfg_channels`: got `4`, allowed: one of all, first3", ""),
        (["--cfg-interval", "0.5"], 2, "`sample.cfg_interval`", "2 values"),
        (["--cfg-interval", "0.5,0.2"], 2, "must be below the upper one, got 0.5 and 0.2", ""),
        (["--cfg-schedule", "cosine"], 2, "got `cosine`, allowed: one of constant, linear, power-cosine", ""),
        (["--steps", "2000"], 2, "sample.steps 2000 exceeds diffusion.num_timesteps 1000", ""),
        (["--sampler", "ddim", "--steps", "300"], 2, "cannot take 300 steps", "(`--steps`) to 250 or 334"),
        (["-n", "0"], 2, "greater than or equal to 1, got `0`", "dis sample --help"),
        (["--preset", "dis-m-cifar"], 2, "model.image_size: 8 in the checkpoint, 32 in the preset", ""),
        (["sample.stps=4"], 2, "sample.stps", "sample.steps"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, status, message, hint, run, tmp_path, capsys) -> None:
    assert dis("sample", "--ckpt", run, "--out", tmp_path / "out", *arguments) == status
    error = capsys.readouterr().err
    assert message in error
    assert hint in error
    assert error.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_an_unconditional_model_cannot_be_guided(tmp_path, capsys) -> None:
    config = averages_config()
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 0})})
    meta = {"config": config.model_dump(mode="json")}
    write_checkpoint(tmp_path / "run" / "checkpoints", 1, {"ema": build_model(config).state_dict()}, meta)
    for command in ("sample", "eval-fid"):
        assert dis(command, "--ckpt", tmp_path / "run", "--out", tmp_path / "out", "--cfg-scale", "2") == 2
        error = capsys.readouterr().err
        assert "sample.cfg_scale 2 needs a model with classes, but this one has none" in error
        assert error.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_not_a_checkpoint_is_refused(run, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    for path in (tmp_path / "missing", tmp_path / "empty", tmp_path / "text.pt"):
        assert dis("sample", "--ckpt", path, "--out", tmp_path / "out") in (1, 2)
        error = capsys.readouterr().err
        assert str(path) in error
        assert error.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_passed_over_or_refused(tmp_path, capsys) -> None:
    assert train(tmp_path / "run", "train.steps=2", "train.save_every=1", "sample.steps=2") == 0
    _, newest = list_checkpoints(tmp_path / "run" / "checkpoints")
    weights = newest / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    capsys.readouterr()
    assert dis("sample", "--ckpt", tmp_path / "run", "--out", tmp_path / "out", "-n", "1", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == 1
    assert "damaged" in captured.err
    assert str(weights) in captured.err
    assert dis("sample", "--ckpt", newest, "--out", tmp_path / "other", "-n", "1") == 1
    assert str(weights) in capsys.readouterr().err


# Weight averages.

MORE = (0.9, 0.99)
ENDINGS = {"none": "", "0.9": "_ema-0.9", "0": "_ema-0"}


def averages_config(seed=0, **train_settings) -> RunConfig:
    return RunConfig(
        seed=seed,
        model=DisConfig(image_size=8, patch_size=4, in_channels=1, embed_dim=16, depth=3, num_classes=10),
        data=DataConfig(source="digits", hflip=False),
        sample=SampleConfig(sampler="ddim", steps=2),
        train=TrainConfig(**train_settings),
    )


def weights(seed) -> dict[str, torch.Tensor]:
    return build_model(averages_config(seed)).state_dict()


def save_averages(folder, step=1, **train_settings):
    """A run whose weights and averages are those of models of other seeds."""
    config = averages_config(**{"ema_more": MORE} | train_settings)
    groups = {"model": weights(1), "ema": weights(2)}
    groups |= {f"ema_more_{index}": weights(3 + index) for index in range(len(config.train.ema_more))}
    path = write_checkpoint(folder / "checkpoints", step, groups, {"config": config.model_dump(mode="json")})
    (folder / "config.toml").write_text(dump_toml(config))
    return path


def images_of(seed, folder) -> list[np.ndarray]:
    """What a run samples whose only weights are those of the model of ``seed``."""
    config = averages_config()
    write_checkpoint(folder / "checkpoints", 1, {"ema": weights(seed)}, {"config": config.model_dump(mode="json")})
    data = sample(folder, folder / "out", "-n", "3")
    return [pixels(folder / "out", record) for record in data["images"]]


@pytest.mark.parametrize(
    ("asked", "seed", "decay", "name"),
    [
        ("none", 2, 0.9999, ""),
        ("0.9999", 2, 0.9999, ""),
        ("0.9", 3, 0.9, "_ema-0.9"),
        ("0.99", 4, 0.99, "_ema-0.99"),
        ("0", 1, 0, "_ema-0"),
    ],
)
def test_images_are_of_the_average_asked_for(asked, seed, decay, name, tmp_path, capsys) -> None:
    save_averages(tmp_path / "run")
    assert dis("sample", "--ckpt", tmp_path / "run", "-n", "3", "--json", f"sample.ema={asked}") == 0
    out = tmp_path / "run" / "samples" / f"step-00000001_ddim_2_seed-0_n-3{name}"
    assert result(capsys)["ema_decay"] == decay
    data = json.loads((out / "samples.json").read_text())
    assert (data["ema_decay"], data["sample"]["ema"]) == (decay, None if asked == "none" else decay)
    found = [pixels(out, record) for record in data["images"]]
    for ours, theirs in zip(found, images_of(seed, tmp_path / "alone"), strict=True):
        assert np.array_equal(ours, theirs)
    assert not np.array_equal(found[0], images_of(5, tmp_path / "other")[0])


def test_an_average_that_a_run_prefers_is_taken(tmp_path, capsys) -> None:
    config = averages_config(ema_more=MORE)
    config = config.model_copy(update={"sample": config.sample.model_copy(update={"ema": 0.99})})
    groups = {"ema": weights(2), "ema_more_0": weights(3), "ema_more_1": weights(4)}
    write_checkpoint(tmp_path / "checkpoints", 1, groups, {"config": config.model_dump(mode="json")})
    assert dis("sample", "--ckpt", tmp_path, "--dry-run", "--json") == 0
    assert result(capsys)["ema_decay"] == 0.99


def test_an_average_that_was_not_kept_is_refused(tmp_path, capsys) -> None:
    path = save_averages(tmp_path / "run")
    for place in (tmp_path / "run", path):
        assert dis("sample", "--ckpt", place, "--out", tmp_path / "out", "sample.ema=0.5") == 2
        error = capsys.readouterr().err
        assert "got `0.5`, allowed: 0.9999, 0.9, 0.99, 0 (the weights themselves)" in error
        assert "train.ema_more" in error
    # The run's averages are those it kept, whatever is said of its training now; told also without reading weights.
    asked = ["sample.ema=0.5", "train.ema_more=0.5"]
    with pytest.raises(ConfigError, match=r"allowed: 0\.9999, 0\.9, 0\.99, 0"):
        assert open_checkpoint(path, asked).config
    with pytest.raises(ConfigError, match=r"allowed: 0\.9999, 0\.9, 0\.99, 0"):
        read_saved(open_checkpoint(path, asked))
    torch.save(weights(1), tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"allowed: 0\.9999, 0 "):
        assert open_checkpoint(tmp_path / "x.pt", asked).config
    # Settings name one that the folder does not have.
    config = averages_config(ema_more=MORE)
    write_checkpoint(tmp_path / "less", 1, {"ema": weights(2)}, {"config": config.model_dump(mode="json")})
    assert dis("sample", "--ckpt", tmp_path / "less", "--dry-run", "sample.ema=0.9") == 2
    assert "an average of decay 0.9 (`ema_more_0`), but there are only ema\n" in capsys.readouterr().err


def test_an_older_checkpoint_has_its_own_order_of_averages(tmp_path, capsys) -> None:
    save_averages(tmp_path, step=1, ema_more=(0.5, 0.9))
    newest = save_averages(tmp_path, step=2)
    damaged = newest / "ema_more_0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    # What is not asked for may be damaged.
    assert dis("sample", "--ckpt", tmp_path, "--dry-run", "--json", "sample.ema=0.99") == 0
    assert result(capsys)["step"] == 2
    assert dis("sample", "--ckpt", tmp_path, "--out", tmp_path / "out", "-n", "3", "--json", "sample.ema=0.9") == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert (data["step"], data["ema_decay"]) == (1, 0.9)
    assert str(damaged) in captured.err
    records = json.loads((tmp_path / "out" / "samples.json").read_text())["images"]
    for record, theirs in zip(records, images_of(4, tmp_path / "alone"), strict=True):
        assert np.array_equal(pixels(tmp_path / "out", record), theirs)


def test_the_weights_of_a_published_file_are_chosen(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    both, bare = {"model": weights(1), "ema": weights(2)}, weights(1)
    torch.save(both, tmp_path / "both.pt")
    torch.save(bare, tmp_path / "bare.pt")

    def sampled(file, *arguments) -> tuple[float, str, bytes]:
        # The pixels: a PNG also names the file that the weights are of.
        assert dis("sample", "--ckpt", tmp_path / file, "-n", "1", "--steps", "2", "--json", *arguments) == 0
        data = result(capsys)
        [path] = (tmp_path / data["out"]).glob("000000*.png")
        return data["ema_decay"], data["out"], pixels(path.parent, {"file": path.name}).tobytes()

    decay, out, average = sampled("both.pt")
    assert (decay, out) == (0.9999, "samples/both_dpmpp_2_seed-0_n-1")
    assert sampled("both.pt", "sample.ema=0.9999") == (decay, out, average)
    decay, out, raw = sampled("both.pt", "sample.ema=0")
    assert (decay, out) == (0, "samples/both_dpmpp_2_seed-0_n-1_ema-0")
    assert raw != average
    assert sampled("bare.pt") == sampled("bare.pt", "sample.ema=0") == (0, "samples/bare_dpmpp_2_seed-0_n-1", raw)
    for file, asked, message in (
        ("both.pt", "0.5", "allowed: 0.9999, 0 (the weights themselves)"),
        ("bare.pt", "0.9999", "holds no moving average"),
    ):
        assert dis("sample", "--ckpt", tmp_path / file, f"sample.ema={asked}") == 2
        assert message in capsys.readouterr().err


def test_scores_of_averages_stand_side_by_side(tmp_path, capsys) -> None:
    save_averages(tmp_path)
    scores = {}
    for asked in ("none", "0.9", "0"):
        assert dis("eval-fid", "--ckpt", tmp_path, "--num-samples", "20", "--json", f"sample.ema={asked}") == 0
        scores[asked] = result(capsys)
    names = {asked: f"step-00000001_digits-cnn-64_ddim-2_cfg-1{end}_n-20.json" for asked, end in ENDINGS.items()}
    assert {path.name for path in (tmp_path / "evaluations").iterdir()} == set(names.values())
    assert len({score["frechet_digits"] for score in scores.values()}) == 3
    for asked, decay in {"none": 0.9999, "0.9": 0.9, "0": 0}.items():
        stored = json.loads((tmp_path / "evaluations" / names[asked]).read_text())
        assert (stored["ema_decay"], stored["frechet_digits"]) == (decay, scores[asked]["frechet_digits"])
    assert dis("eval-fid", "--ckpt", tmp_path, "sample.ema=0.5") == 2
    assert "allowed: 0.9999, 0.9, 0.99, 0 (the weights themselves)" in capsys.readouterr().err


def test_a_checkpoint_named_from_beside_it_is_in_its_run(tmp_path, capsys, monkeypatch) -> None:
    path = save_averages(tmp_path)
    monkeypatch.chdir(path.parent)
    assert dis("sample", "--ckpt", path.name, "--dry-run", "--json") == 0
    assert result(capsys)["out"] == str(tmp_path / "samples" / "step-00000001_ddim_2_seed-0_n-16")


def test_a_foreign_folder_is_not_overwritten(run, tmp_path, capsys) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert dis("sample", "--ckpt", run, "--out", tmp_path) == 2
    assert "holds no samples" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
