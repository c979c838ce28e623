import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dis_cli.metrics.cache import ImageDigest, Key, ScoreCache

KEY = Key(
    kind="statistics",
    images_sha256="a" * 64,
    num_images=10,
    extractor="digits-cnn-64",
    extractor_sha256="b" * 64,
    preprocessing="8x8 grey",
)
ARRAYS = {"mean": np.arange(5.0), "covariance": np.eye(5), "features": np.ones((3, 2), np.float32)}


def entry(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, ARRAYS)
    found = ScoreCache(tmp_path).get(KEY)
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "features"},
        {"images_sha256": "c" * 64},
        {"num_images": 11},
        {"extractor": "other"},
        {"extractor_sha256": "c" * 64},
        {"preprocessing": "other"},
        {"computed": "cuda"},
    ],
)
def test_anything_else_is_another_entry(change: dict[str, str], tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    cache.put(KEY, ARRAYS)
    other = replace(KEY, **change)
    assert cache.get(other) is None
    # nor is an entry believed that lies under another's name
    first = entry(tmp_path)
    cache.put(other, ARRAYS)
    (second,) = set(tmp_path.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    assert cache.get(other) is None


def test_damaged_entries_are_none_and_are_written_anew(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    cache.put(KEY, ARRAYS)
    path = entry(tmp_path)
    content = path.read_bytes()
    damages = [content[:length] for length in range(0, len(content), 31)] + [content + b"x"]
    for place in range(0, len(content), 13):
        flipped = bytearray(content)
        flipped[place] ^= 4
        damages.append(bytes(flipped))
    for damage in damages:
        path.write_bytes(damage)
        assert cache.get(KEY) is None
    cache.put(KEY, ARRAYS)
    assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ScoreCache(tmp_path / "file" / "scores")
    cache.put(KEY, ARRAYS)
    assert cache.get(KEY) is None


WRITE_OFTEN = f"""
import sys
from pathlib import Path
import numpy as np
from dis_cli.metrics.cache import Key, ScoreCache
for _ in range(60):
    ScoreCache(Path(sys.argv[1])).put({KEY!r}, {{"mean": np.arange(20_000.0)}})
"""


def test_writers_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITE_OFTEN, str(tmp_path)]) for _ in range(2)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        found = ScoreCache(tmp_path).get(KEY)
        if found is not None:
            assert np.array_equal(found["mean"], np.arange(20_000.0))
            seen += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen > 0
    assert len(list(tmp_path.iterdir())) == 1


def test_the_digest_is_of_the_pixels() -> None:
    images = torch.randint(0, 256, (9, 4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def digest(*parts: torch.Tensor) -> str:
        whole = ImageDigest()
        for part in parts:
            whole.update(part)
        return whole.hexdigest()

    changed = images.clone()
    changed[3, 2, 1, 0] ^= 1
    assert digest(images) == digest(*images.split(2))
    # a view of other memory order is the same image
    assert digest(images) == digest(images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    others = [digest(changed), digest(images.flip(0)), digest(images[:-1]), digest(images.reshape(9, 6, 4, 3))]
    assert len({digest(images), *others}) == 5
