"""Five training steps, the sampled images of two models, and the learning rate, against the published code."""

import itertools
import json

import pytest
import torch
from support.models import recorded_model
from support.oracle import DATA, TOLERANCE, assert_matches, group, load, relative_error

from dis_cli.config.schema import RunConfig, TrainConfig
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.diffusion.guidance import Guidance, guide
from dis_cli.diffusion.objective import q_sample, training_losses
from dis_cli.diffusion.samplers.loop import make_sampler, sample_loop
from dis_cli.diffusion.schedule import make_schedule
from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.training.ema import Ema
from dis_cli.training.loop import train_steps
from dis_cli.training.lr import lr_factor
from dis_cli.training.optimizer import make_optimizer
from dis_cli.training.state import TrainingState
from dis_cli.workflows.train.build import build_learning_rate


def test_five_steps() -> None:
    recorded = load("train_a_accum1_f64", torch.float64)
    model = recorded_model("model_a_f64", torch.float64)
    schedule = make_schedule("linear", 1000)
    seen: list[dict[str, torch.Tensor]] = []

    def loss_function(model: torch.nn.Module, batch: TrainingBatch) -> torch.Tensor:
        x_t = q_sample(schedule, batch.x_0, batch.t, batch.noise)
        output = model(x_t, batch.t)
        losses = training_losses(
            schedule, output, batch.x_0, x_t, batch.noise, batch.t, prediction="epsilon", variance="learned_range"
        )
        seen.append(losses)
        return losses["loss"].mean()

    batches = [
        TrainingBatch(
            recorded[f"step{step}.x"],
            torch.zeros(len(recorded[f"step{step}.t"]), dtype=torch.int64),
            recorded[f"step{step}.t"],
            recorded[f"step{step}.noise"],
            torch.zeros(len(recorded[f"step{step}.t"])),
            torch.zeros(0, len(recorded[f"step{step}.t"])),
        )
        for step in range(5)
    ]
    # The published recipe in this project's settings: three epochs of three steps, the first of them the warm-up.
    config = RunConfig(
        train=TrainConfig(
            steps=9,
            lr=1e-3,
            min_lr_ratio=0.01,
            warmup_steps=3,
            warmup_start="zero",
            lr_schedule="cosine",
        )
    )
    train = config.train
    rates = [build_learning_rate(config, step) for step in range(5)]
    assert rates == pytest.approx(recorded["lr"].tolist(), rel=1e-12, abs=0)
    # The fault that "above_zero", the default, mends.
    assert rates[0] == 0.0
    optimizer = make_optimizer(model, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay)
    state = TrainingState(model, Ema(model, decay=train.ema_decay, warmup=train.ema_warmup), optimizer)
    events = list(
        train_steps(
            state,
            iter(batches),
            loss_function=loss_function,
            learning_rate=lambda step: build_learning_rate(config, step),
            accumulation=train.accumulation,
            clip_norm=train.clip_norm,
            device=torch.device("cpu"),
            group=ProcessGroup(),
        )
    )
    assert [event.step for event in events] == [1, 2, 3, 4, 5]
    for name, values in {
        "loss": [event.loss for event in events],
        "grad_norm_before_clip": [event.grad_norm for event in events],
    }.items():
        assert_matches(torch.tensor(values, dtype=torch.float64), recorded[name], torch.float64, name)
    for term in ("mse", "vb"):
        assert_matches(torch.stack([losses[term] for losses in seen]), recorded[term], torch.float64, term)
    for name, parameter in model.named_parameters():
        assert_matches(parameter, recorded[f"final/{name}"], torch.float64, name)
    averages = group(recorded, "ema")
    assert averages
    for name, expected in averages.items():
        assert_matches(state.ema.average[name], expected, torch.float64, name)


@pytest.mark.parametrize("case", ["a_plain", "b_cfg"])
def test_sampled_images(case, monkeypatch) -> None:
    recorded = load("sample_e2e_f32")
    name = "model_b_f32" if case == "b_cfg" else "model_a_f64"
    model = recorded_model(name, torch.float32)
    z, noise = recorded[f"{case}.z"], recorded[f"{case}.noise_in_call_order"]
    labels = None
    if case == "b_cfg":
        # The published loop carries every image twice; the second copy of each is the same image.
        half = len(z) // 2
        labels = recorded["b_cfg.labels"][:half]
        z, noise = z[:half], noise[:, :half]
    draws = itertools.chain(noise)
    monkeypatch.setattr("dis_cli.diffusion.samplers.loop.draw_noise", lambda *_arguments: next(draws))
    sampler = make_sampler(
        make_schedule("linear", 1000), name="ancestral", steps=10, prediction="epsilon", variance="learned_range"
    )

    guidance = Guidance(num_timesteps=1000, cfg_scale=1.5, cfg_channels="first3")
    denoise = guide(model, labels, guidance, null_class=model.null_class, num_channels=model.in_channels)
    generators = [torch.Generator() for _ in z]
    steps = list(sample_loop(denoise, z, sampler, generators))
    expected = recorded[f"{case}.samples"][:, : len(z)]
    guided = slice(None) if case == "a_plain" else slice(0, 3)
    for index, (got, wanted) in enumerate(zip(steps, expected, strict=True)):
        if case == "b_cfg" and index > 0:
            # The published second half denoises its fourth channel differently, but is thrown away every step.
            assert relative_error(got, wanted) <= 1e-5
        else:
            assert_matches(got[:, guided], wanted[:, guided], torch.float32, f"step {index}")
    assert relative_error(steps[-1], recorded[f"{case}.final"][: len(z)]) <= TOLERANCE[torch.float32]


CURVES = json.loads((DATA / "lr_schedule.json").read_text())


@pytest.mark.parametrize("config", CURVES)
def test_learning_rate_curve(config) -> None:
    settings = json.loads(config)
    steps_per_epoch = 7
    for epoch, expected in CURVES[config]:
        got = settings["lr"] * lr_factor(
            epoch * steps_per_epoch,
            warmup_steps=settings["warmup_epochs"] * steps_per_epoch,
            total_steps=settings["epochs"] * steps_per_epoch,
            schedule="cosine",
            min_ratio=settings["min_lr"] / settings["lr"],
        )
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-18)
