import pytest

from dis_cli.errors import UsageError
from dis_cli.runtime.distributed import WorkShare, local_rank, local_world_size, parse_part, part_from_environment


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_part_is_counted_from_one() -> None:
    assert parse_part("1/1") == WorkShare(0, 1, together=False)
    assert parse_part("2/3") == WorkShare(1, 3, together=False)
    assert parse_part("007/0010") == WorkShare(6, 10, together=False)


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/0", "0/0", "x", "1/x", "-1/2", "1/2/3", " 1/2", "1.0/2", "٢/٣"]
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="from 1 to n") as error:
        parse_part(text)
    assert f"`{text}`" in error.value.message
    assert "--part 1/2" in (error.value.hint or "")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_item_belongs_to_one_part(count: int) -> None:
    parts = [WorkShare(index, count) for index in range(count)]
    assert all(sum(part.holds(item) for part in parts) == 1 for item in range(20))
    shares = [sum(part.holds(item) for item in range(20)) for part in parts]
    assert max(shares) - min(shares) <= 1


def test_a_process_that_was_started_alone_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert part_from_environment() == WorkShare(0, 1, together=True)
    assert local_rank() == 0
    # schedulers set one of them for their own purposes
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert part_from_environment() == WorkShare()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("RANK", "3")
    assert part_from_environment() == WorkShare()


def test_torchrun_says_which_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert part_from_environment() == WorkShare(5, 8, together=True)
    assert local_rank() == 1


@pytest.mark.parametrize(
    ("rank", "world_size"), [("2", "2"), ("-1", "2"), ("0", "0"), ("x", "2"), ("0", ""), ("0", "x")]
)
def test_an_impossible_environment_is_refused(monkeypatch: pytest.MonkeyPatch, rank: str, world_size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(UsageError, match=f"RANK={rank} and WORLD_SIZE={world_size}") as error:
        part_from_environment()
    assert "torchrun" in (error.value.hint or "")
    assert "`unset RANK WORLD_SIZE`" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("name", "read"), [("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", local_world_size)], ids=["rank", "size"]
)
@pytest.mark.parametrize("value", ["", "x", "-1", "1.5"])
def test_a_place_on_this_machine_that_is_no_number_is_refused(name, read, value, monkeypatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name} must be a number, got {name}={value}") as error:
        read()
    assert f"`unset {name}`" in (error.value.hint or "")
