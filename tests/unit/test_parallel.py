"""One model on two ranks: whose gradients, weights and samples are whose."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.held_out import losses
from support.naive_dis import ABLATED
from support.ranks import call_on
from torch import Tensor

from dis_cli.data.batches import TrainingSet, training_batches
from dis_cli.data.published.digits import DigitsSource
from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.models.dis.backbone import DiS
from dis_cli.runtime.device import Process
from dis_cli.runtime.process_group import join_process_group
from dis_cli.training.parallel import all_equal, assign, gradient_sync, replicate, shard, whole

STEPS = range(3, 7)


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (2, 2), (4, 1), (1, 4), (3, 2)])
def test_ranks_share_the_samples_of_a_step_in_order(world_size: int, accumulation: int) -> None:
    dataset = TrainingSet(DigitsSource("train"), seed=3, num_timesteps=1000, num_drop_path=2)

    def batches(rank: int, world_size: int, accumulation: int) -> list[TrainingBatch]:
        settings = {"first_step": STEPS.start, "last_step": STEPS.stop, "batch_size": 24, "num_workers": 0}
        return list(training_batches(dataset, **settings, accumulation=accumulation, rank=rank, world_size=world_size))

    expected = batches(0, 1, 1)
    by_rank = [batches(rank, world_size, accumulation) for rank in range(world_size)]
    assert all(len(own) == len(STEPS) * accumulation for own in by_rank)
    for place, step in enumerate(expected):
        parts = range(place * accumulation, (place + 1) * accumulation)
        shares = [by_rank[rank][part] for part in parts for rank in range(world_size)]
        assert {len(share.x_0) for share in shares} == {24 // (accumulation * world_size)}
        for name, field in zip(step._fields, step, strict=True):
            joined = torch.cat([getattr(share, name) for share in shares], dim=1 if name == "drop_path_uniform" else 0)
            assert joined.equal(field), name


def test_samples_that_cannot_be_shared_equally_are_refused() -> None:
    dataset = TrainingSet(DigitsSource("train"), seed=3, num_timesteps=1000, num_drop_path=2)
    settings = {"first_step": 0, "last_step": 1, "num_workers": 0}
    with pytest.raises(ValueError, match="20 samples cannot be dealt out to 2 parts of 3 ranks"):
        list(training_batches(dataset, batch_size=20, accumulation=2, world_size=3, **settings))


def small_model(**changes: Any) -> DiS:
    torch.manual_seed(0)
    return DiS(image_size=8, patch_size=4, in_channels=1, embed_dim=16, depth=3, num_classes=0, **changes)


def gradients(module: torch.nn.Module, *seeds: int, synced: bool = True) -> dict[str, Tensor]:
    """Of the mean output over these inputs, added to what is there."""
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    module.eval()
    with gradient_sync(module, enabled=synced):
        module(x, torch.full((len(x),), 7)).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def work() -> dict[str, Any]:
    """What one of two ranks gets."""
    result: dict[str, Any] = {}
    with join_process_group(torch.device("cpu")) as group:
        rank = group.rank

        # Are all ranks' bits the same?
        same = [torch.linspace(-1, 1, 7), torch.tensor([[2.0, 3.0]])]
        result["same"] = all_equal(same)
        for bit in (0, 13, 30, 31):
            other = [tensor.clone() for tensor in same]
            if rank == 1:
                flat = other[0].view(torch.int32)
                flat[4] ^= torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
            result[f"bit {bit}"] = all_equal(other)
        result["swapped"] = all_equal(same if rank == 0 else same[::-1])
        result["minus zero"] = all_equal([torch.tensor(0.0 if rank == 0 else -0.0)])

        # The leader's values reach all.
        target = torch.full((2, 3), float(rank))
        assign(target, torch.arange(6.0).view(3, 2).t() if rank == 0 else torch.zeros(2, 3))
        result["assigned"] = target

        # Gradients averaged over all, and only when they should be.
        module = replicate(small_model())
        result["unsynced"] = gradients(module, 10 + rank, synced=False)
        result["synced"] = gradients(module, 20 + rank)

        # Weights dealt out.
        model = small_model()
        shard(model)
        local = dict(model.named_parameters())["in_blocks.0.mixer.in_proj.weight"].to_local()
        result["local"] = tuple(local.shape)
        result["whole"] = {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}
        gradients(model, 10 + rank, synced=False)
        gradients(model, 20 + rank)
        result["sharded"] = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
        parameter = next(model.parameters())
        values = torch.arange(float(parameter.numel())).view(parameter.shape)
        with torch.no_grad():
            assign(parameter, values if rank == 0 else torch.zeros_like(values))
        result["dealt out"] = whole(parameter.detach()).equal(values)
        ablated = small_model(**ABLATED)
        shard(ablated)
        gradients(ablated, 20 + rank)
        result["held out"] = losses(Process(torch.device("cpu"), group))
        result["ablated"] = {name: whole(parameter.grad) for name, parameter in ablated.named_parameters()}
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("parallel")
    return call_on(2, work, folder=folder)


def test_ranks_that_differ_by_one_bit_are_found(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["same"] is True
        assert {name: result[name] for name in result if name.startswith(("bit", "swapped", "minus"))} == {
            "bit 0": False,
            "bit 13": False,
            "bit 30": False,
            "bit 31": False,
            "swapped": False,
            "minus zero": False,
        }


def test_the_leaders_values_are_everyones(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["assigned"].tolist() == [[0, 2, 4], [1, 3, 5]]
        assert result["dealt out"] is True


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_the_mean_over_all_ranks_when_they_are_synced(results: list[dict[str, Any]]) -> None:
    model = small_model()
    own = [gradients(small_model(), 10 + rank) for rank in range(2)]
    gradients(model, 10, 11)
    together = gradients(model, 20, 21)
    for rank, result in enumerate(results):
        assert_close({name.removeprefix("module."): grad for name, grad in result["unsynced"].items()}, own[rank])
        assert_close({name.removeprefix("module."): grad for name, grad in result["synced"].items()}, together)
    for name, grad in results[0]["synced"].items():
        assert grad.equal(results[1]["synced"][name]), name


def test_weights_are_dealt_out_and_their_gradients_are_the_mean(results: list[dict[str, Any]]) -> None:
    model = small_model()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradients(model, 10, 11)
    together = gradients(model, 20, 21)
    for result in results:
        rows, columns = weights["in_blocks.0.mixer.in_proj.weight"].shape
        assert result["local"] == (rows // 2, columns)
        assert result["whole"].keys() == weights.keys()
        assert all(result["whole"][name].equal(weight) for name, weight in weights.items())
        assert_close(result["sharded"], together)
    together = gradients(small_model(**ABLATED), 20, 21)
    for result in results:
        assert_close(result["ablated"], together)


def test_ranks_share_held_out_images(results: list[dict[str, Any]]) -> None:
    alone, together = losses(Process(torch.device("cpu"))), results[0]["held out"]
    assert results[1]["held out"] is None
    assert together.epsilon == alone.epsilon
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)
    assert together.images == 11
