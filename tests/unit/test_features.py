import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rebuild import digits_classifier
from safetensors.torch import save_file
from support.inception import save_random_inception
from torch import Tensor

from dis_cli.codecs.pixel import to_uint8
from dis_cli.data.published.digits import DigitsSource
from dis_cli.errors import MissingResourceError, RefusedError
from dis_cli.metrics.extractors.base import FEATURES, LOGITS, SPATIAL
from dis_cli.metrics.extractors.digits import DIGIT_WEIGHTS, DigitFeatures
from dis_cli.metrics.extractors.inception import InceptionFeatures


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def test_digits() -> tuple[Tensor, Tensor]:
    source = DigitsSource("test")
    images = to_uint8(torch.stack([source.load(index, None) for index in range(len(source))]))
    return images, torch.tensor(source.labels)


def test_bundled_weights_classify_digits_they_were_not_trained_on(test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = test_digits
    features, logits = DigitFeatures().features(images)
    assert features.shape == (450, 64)
    assert logits.shape == (450, 10)
    assert features.dtype == logits.dtype == torch.float32
    assert (logits.argmax(1) == labels).double().mean() >= 0.98
    # no feature is always zero
    assert (features.amax(0) > 0).all()


def test_bundled_weights_tell_gaussians_from_digits() -> None:
    measured = digits_classifier.measure(DigitFeatures())
    assert measured["floor"] == pytest.approx(4.02, abs=0.05)
    assert measured["class_gaussians"] / measured["floor"] > 5.7
    assert measured["noise"] > 50 * measured["floor"]


def test_bundled_weights_are_small_and_named_by_their_hash() -> None:
    extractor = DigitFeatures()
    assert DIGIT_WEIGHTS.stat().st_size < 300_000
    assert extractor.sha256 == hashlib.sha256(DIGIT_WEIGHTS.read_bytes()).hexdigest()
    assert extractor.name == "digits-cnn-64"


@pytest.mark.parametrize("size", [1, 7, 64])
def test_features_do_not_depend_on_the_batch(size: int, test_digits: tuple[Tensor, Tensor]) -> None:
    images = test_digits[0][:140]
    extractor = DigitFeatures()
    parts = torch.cat([extractor.features(part)[0] for part in images.split(size)])
    torch.testing.assert_close(parts, extractor.features(images)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 8, 8, 1),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 28, 28, 1, dtype=torch.uint8),
    ],
)
def test_other_images_are_not_digits(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images must"):
        DigitFeatures().features(images)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    damaged, other = tmp_path / "damaged.safetensors", tmp_path / "other.safetensors"
    damaged.write_bytes(DIGIT_WEIGHTS.read_bytes()[:-1])
    save_file({"weight": torch.zeros(3)}, other)
    for path in (damaged, other, tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(MissingResourceError, match=str(path)):
            DigitFeatures(path)


@pytest.mark.long
def test_rebuilding_gives_the_same_bytes_and_a_readable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_classifier, "NUM_EPOCHS", 3)
    monkeypatch.setattr(digits_classifier, "WARMUP_STEPS", 10)
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    finished = list(digits_classifier.rebuild(a))[-1].to_json()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    list(digits_classifier.rebuild(b))
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert a.read_bytes() == b.read_bytes()
    plain = tmp_path / "plain"
    plain.touch()
    assert a.stat().st_mode == plain.stat().st_mode
    result: Any = finished["result"]
    assert result["size_bytes"] == a.stat().st_size
    assert result["sha256"] == hashlib.sha256(a.read_bytes()).hexdigest()
    assert result["test_accuracy"] > 0.5


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = save_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")
    yield path
    path.unlink()


def test_inception_features_of_images_in_our_layout(inception_file: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    pixels = np.random.default_rng(0).integers(0, 256, (3, 10, 12, 3), dtype=np.uint8)
    pixels[2] = pixels[2, :, :, :1]
    extractor = InceptionFeatures(inception_file)
    outputs = extractor.outputs(torch.from_numpy(pixels))
    features = outputs[FEATURES]
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        name: (3, size) for name, size in extractor.sizes.items()
    }
    assert all(output.dtype == torch.float32 for output in outputs.values())
    network = FeatureExtractorInceptionV3(
        "own", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file)
    )
    seen: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    expected, logits = network(torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, 3, 1))))
    torch.testing.assert_close(outputs[LOGITS], logits, rtol=1e-4, atol=1e-5)
    # ADM's order: row, column, channel
    spatial = outputs[SPATIAL].view(3, 17, 17, 7)
    assert spatial.std() > 0.1
    torch.testing.assert_close(spatial[1, 5, 11, 6], seen[0][1, 6, 5, 11], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spatial[2, 16, 0, 0], seen[0][2, 0, 16, 0], rtol=1e-4, atol=1e-5)
    spread = float((expected[0] - expected[1]).abs().max())
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4 * spread)
    # grey images count as three equal colours, and an image's features do not depend on its batch
    grey = extractor.outputs(torch.from_numpy(pixels[2:, :, :, :1]))[FEATURES]
    torch.testing.assert_close(grey, expected[2:], rtol=0, atol=1e-4 * spread)
    assert extractor.sha256 == hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert not extractor.published
    with pytest.raises(ValueError, match="channels"):
        extractor.outputs(torch.zeros(1, 8, 8, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        extractor.outputs(torch.zeros(1, 8, 8, 3))


def test_missing_inception_weights_say_what_to_fetch_and_where_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError) as caught:
        InceptionFeatures(tmp_path / "nowhere.pth")
    assert "nowhere.pth" in caught.value.message
    assert caught.value.hint
    assert "pt_inception-2015-12-05-6726825d.pth" in caught.value.hint
    assert "--inception PATH" in caught.value.hint


def test_files_that_are_not_inceptions_are_refused(tmp_path: Path) -> None:
    text, empty, other, number = (tmp_path / name for name in ("text", "empty", "other", "number"))
    text.write_text("<html>not found</html>")
    empty.touch()
    torch.save({"fc.weight": torch.zeros(2, 2)}, other)
    torch.save(3, number)
    for path in (text, empty, other, number):
        with pytest.raises(MissingResourceError, match=str(path)):
            InceptionFeatures(path)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    trap, mark = tmp_path / "trap.pth", tmp_path / "was_run"
    torch.save({"fc.weight": Trap(mark)}, trap)
    with pytest.raises(RefusedError, match="nothing in it was run"):
        InceptionFeatures(trap)
    assert not mark.exists()
    # the trap works where it is not refused
    torch.load(trap, weights_only=False)
    assert mark.exists()


def test_importing_the_module_does_not_import_torchvision() -> None:
    module = "dis_cli.metrics.extractors.base"
    code = f"import sys, {module}; print(sorted({{'torchvision', 'torch_fidelity'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
