import pytest
import torch

from dis_cli.errors import UsageError
from dis_cli.runtime.device import pick_device


def with_cuda_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 2, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_names(monkeypatch: pytest.MonkeyPatch, name: str, count: int, expected: str) -> None:
    with_cuda_devices(monkeypatch, count)
    assert str(pick_device(name)) == expected


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", 0, "PyTorch finds no CUDA device"),
        ("cuda:2", 2, r"this machine has 2 \(cuda:0 to cuda:1\)"),
        ("gpu", 2, "Unknown device: `gpu`"),
        ("cuda:", 2, "Unknown device"),
        ("cuda:-1", 2, "Unknown device"),
        ("", 0, "Unknown device"),
    ],
)
def test_what_there_is_not_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int, message: str
) -> None:
    with_cuda_devices(monkeypatch, count)
    with pytest.raises(UsageError, match=message) as error:
        pick_device(name)
    assert error.value.hint


@pytest.mark.parametrize(("count", "refused"), [(0, False), (1, False), (2, True)])
def test_whose_turn_a_gpu_is_must_be_said(count: int, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda_devices(monkeypatch, count)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if not refused:
        assert pick_device("auto").type == ("cuda" if count else "cpu")
        return
    with pytest.raises(UsageError, match="LOCAL_RANK is not set") as caught:
        pick_device("auto")
    assert "torchrun" in (caught.value.hint or "")
    assert str(pick_device("cuda:1")) == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(pick_device("auto")) == "cuda:1"
