"""The whole backbone against arrays recorded from the published code: outputs, activations, every gradient."""

import pytest
import torch
from support.engines import MIXERS, case_fixture, parameters
from support.models import recorded_model
from support.oracle import assert_matches, group, load, relative_error
from torch import Tensor

from dis_cli.diffusion.guidance import guided_output
from dis_cli.models import DiS

# Model b was recorded in float32 only.
FILES = ["model_a_f64", "model_b_f32", "model_c_f64"]

case = case_fixture(MIXERS)


def each_file_and_case(files: list[str]) -> pytest.MarkDecorator:
    pairs = [
        pytest.param(name, *parameter.values, id=f"{name}-{parameter.id}", marks=parameter.marks)
        for name in files
        for parameter in parameters(MIXERS)
        if name != "model_b_f32" or parameter.values[0].dtype == torch.float32
    ]
    return pytest.mark.parametrize(("name", "case"), pairs, indirect=["case"])


cases = each_file_and_case(FILES)
conditional_cases = each_file_and_case(FILES[1:])


def assert_gradients(model: DiS, expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    assert expected
    for key, parameter in model.named_parameters():
        assert_matches(parameter.grad, expected[key], dtype, key)


@cases
def test_evaluation(name, case) -> None:
    recorded = load(name, case.dtype)
    model = recorded_model(name, case.dtype, engine=case.engine)
    x = recorded["x"].requires_grad_()
    out = model(x, recorded["t"], recorded.get("labels"))
    assert_matches(out, recorded["out_eval"], case.dtype, "out")
    (out * recorded["w"]).sum().backward()
    assert_matches(x.grad, recorded["grad_x"], case.dtype, "grad_x")
    assert_gradients(model, group(recorded, "grad"), case.dtype)


@cases
def test_training_with_label_drop(name, case) -> None:
    recorded = load(name, case.dtype)
    model = recorded_model(name, case.dtype, engine=case.engine).train()
    labels, uniform = recorded.get("labels"), recorded.get("label_drop_uniform")
    out = model(recorded["x"], recorded["t"], labels, label_drop_uniform=uniform)
    assert_matches(out, recorded["out_train"], case.dtype, "out")
    if name != "model_b_f32":
        (out * recorded["w"]).sum().backward()
        # Model a is unconditional: without drop path, training and evaluation are the same.
        assert_gradients(model, group(recorded, "grad_train" if name == "model_c_f64" else "grad"), case.dtype)


@cases
def test_training_with_drop_path(name, case) -> None:
    recorded = load(name, case.dtype)
    model = recorded_model(name, case.dtype, engine=case.engine, drop_path=0.3).train()
    masks = recorded["droppath_keep_masks"]
    rates = [rate for rate in model.drop_path_rates if rate > 0]
    assert_matches(torch.tensor(rates, dtype=torch.float64), 1 - load(name)["droppath_keep_probs"], torch.float64)
    out = model(
        recorded["x"],
        recorded["t"],
        recorded.get("labels"),
        label_drop_uniform=recorded.get("label_drop_uniform"),
        drop_path_uniform=torch.where(masks > 0, 0.999, 0.0).to(case.dtype),
    )
    assert_matches(out, recorded["out_train_droppath0.3"], case.dtype, "out")


def test_activations(case) -> None:
    recorded = load("model_a_f64", case.dtype)
    model = recorded_model("model_a_f64", case.dtype, engine=case.engine)
    seen: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks()):

        def keep_block(_module, inputs, outputs, index=index) -> None:
            if index == 0:
                seen["tokens_plus_pos"] = inputs[0]
            seen[f"block{index:02d}.hidden"], seen[f"block{index:02d}.residual"] = outputs

        block.register_forward_hook(keep_block)
        if block.skip_linear is not None:
            block.skip_linear.register_forward_hook(
                lambda _m, _i, out, index=index: seen.update({f"block{index:02d}.skip_linear_out": out})
            )
    for key, module in {
        "patch_embed": model.patch_embed,
        "time_token": model.time_embed,
    }.items():
        module.register_forward_hook(lambda _m, _i, out, key=key: seen.update({key: out}))
    model.norm_f.register_forward_hook(lambda _m, _i, out: seen.update(norm_f_out=out[0]))
    model.time_embed.register_forward_pre_hook(lambda _m, inputs: seen.update(time_embedding_sinusoid=inputs[0]))
    model(recorded["x"], recorded["t"])
    # The extra tokens are dropped before the final layer here, after it in the published code.
    seen["final_layer_all_tokens"] = model.final_layer(seen["norm_f_out"], None)
    expected = group(recorded, "act")
    assert set(seen) == set(expected)
    for key, value in expected.items():
        assert_matches(seen[key], value, case.dtype, key)


@pytest.mark.parametrize(("scale", "mixed"), [(1.5, ""), (4.0, ""), (1.5, "_mixed")])
@conditional_cases
def test_guidance_on_the_first_three_channels(name, case, scale, mixed) -> None:
    recorded = load(name, case.dtype)
    model = recorded_model(name, case.dtype, engine=case.engine)
    channels = model.in_channels
    half = len(recorded["cfg_x"]) // 2
    # The published function predicts from the first half of x only, with labels for both halves: real ones, then null.
    assert (recorded["cfg_labels"][half:] == model.null_class).all()
    with torch.no_grad():
        out = guided_output(
            model,
            recorded["cfg_x"][:half],
            recorded[f"cfg_t{mixed}"][:half],
            recorded["cfg_labels"][:half],
            null_class=model.null_class,
            cfg_scale=scale,
            num_channels=channels,
            cfg_channels="first3",
        )
    expected = recorded[f"cfg_out_{scale}{mixed.replace('_', '_t')}"]
    assert_matches(out, expected[:half], case.dtype)
    # The predicted channels that are guided are the same in both published halves.
    assert_matches(out[:, :3], expected[half:, :3], case.dtype)


def test_guidance_on_all_channels_differs_on_the_fourth() -> None:
    recorded = load("model_b_f32")
    model = recorded_model("model_b_f32", torch.float32)
    with torch.no_grad():
        out = guided_output(
            model,
            recorded["cfg_x"][:2],
            recorded["cfg_t"][:2],
            recorded["cfg_labels"][:2],
            null_class=10,
            cfg_scale=1.5,
            num_channels=4,
        )
    expected = recorded["cfg_out_1.5"][:2]
    assert_matches(out[:, :3], expected[:, :3], torch.float32)
    assert relative_error(out[:, 3], expected[:, 3]) > 1e-2
