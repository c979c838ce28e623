"""Where weights are found, and the extractors that are not bundled."""

import functools
import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from support.inception import save_random_inception

from dis_cli.errors import MissingResourceError
from dis_cli.metrics.extractors import download, locate
from dis_cli.metrics.extractors.base import FEATURES, Extractor, FunctionFeatures, score_names
from dis_cli.metrics.extractors.digits import DigitFeatures
from dis_cli.metrics.extractors.fidelity import FidelityFeatures, clip_features, dinov2_features
from dis_cli.metrics.extractors.inception import InceptionFeatures
from dis_cli.metrics.extractors.locate import FIDELITY_FILE, INCEPTION_FILE, find_inception, locate_inception
from dis_cli.metrics.table import METRICS, OF_MODEL


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's: the folder of its checkpoints."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = save_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")
    yield path
    path.unlink()


def test_the_cache_is_where_torch_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in ({"TORCH_HOME": str(tmp_path)}, {"XDG_CACHE_HOME": str(tmp_path)}, {"HOME": str(tmp_path)}):
        with monkeypatch.context() as patch:
            for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            assert str(locate.torch_cache()) == torch.hub.get_dir()


def test_inception_is_found_in_torchs_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_inception() is None
    with pytest.raises(MissingResourceError, match=r"not bundled and not in `.*checkpoints`") as absent:
        locate_inception(None)
    assert "--inception PATH" in str(absent.value.hint)
    for name in (INCEPTION_FILE, FIDELITY_FILE):
        (hub / name).write_bytes(b"weights")
        found = find_inception()
        assert found is not None
        assert found.path == hub / name
    # what has its name and not its content is found out before anything reads it
    with pytest.raises(MissingResourceError, match=r"expected sha256 6726825d0af5.*, found [0-9a-f]{64}"):
        locate_inception(None)
    monkeypatch.setattr(locate, "INCEPTION_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert locate_inception(None) == hub / FIDELITY_FILE


def test_a_named_file_may_be_any(hub: Path, tmp_path: Path) -> None:
    (hub / FIDELITY_FILE).write_bytes(b"weights")
    own = tmp_path / "own.pth"
    with pytest.raises(MissingResourceError, match=r"own\.pth"):
        find_inception(own)
    own.write_bytes(b"other weights")
    assert locate_inception(own) == own


def test_only_the_published_inception_gives_an_fid(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = InceptionFeatures(inception_file)
    digits, function = DigitFeatures(), FunctionFeatures(len, num_features=1, sha256="", name="a.b:c")  # pyright: ignore
    for extractor, label in ((own, "inception"), (digits, "digits"), (function, "a_b_c")):
        assert isinstance(extractor, Extractor)
        names = score_names(extractor)
        assert names.keys() == set(METRICS) - {OF_MODEL}
        assert names["fid"] == f"frechet_{label}"
        assert names["recall"] == f"recall_{label}"
        assert all(name.endswith(f"_{label}") and "fid" not in name and "kid" not in name for name in names.values())
    monkeypatch.setattr("dis_cli.metrics.extractors.inception.INCEPTION_SHA256", own.sha256)
    published = InceptionFeatures(inception_file)
    assert published.published
    assert score_names(published) == {metric: metric for metric in METRICS if metric != OF_MODEL}


def test_a_network_of_torch_fidelitys(inception_file: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("some", ["768"], feature_extractor_weights_path=str(inception_file))
    extractor = FidelityFeatures(network, sha256="0" * 64, label="some", preprocessing="none")
    assert isinstance(extractor, Extractor)
    assert (extractor.name, dict(extractor.sizes)) == ("some-768", {FEATURES: 768})
    images = torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    outputs = extractor.outputs(images)
    torch.testing.assert_close(outputs[FEATURES], network(images.permute(0, 3, 1, 2).contiguous())[0])
    grey = images[..., :1]
    torch.testing.assert_close(
        extractor.outputs(grey)[FEATURES], extractor.outputs(grey.expand(-1, -1, -1, 3))[FEATURES]
    )
    with pytest.raises(ValueError, match="1 or 3 channels"):
        extractor.outputs(torch.zeros(1, 8, 8, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        extractor.outputs(images.float())


def test_clip_is_read_only_when_it_is_openais(hub: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"Weights of CLIP not found: .*clip-vit-b-32-40d365715913"):
        clip_features()
    (hub / locate.CLIP_FILE).write_bytes(b"anything")
    with pytest.raises(MissingResourceError, match="expected sha256 40d365715913"):
        clip_features()


def test_dinov2_needs_its_weights_and_its_code(hub: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"dinov2_vitl14_pretrain\.pth"):
        dinov2_features()
    (hub / locate.DINOV2_FILE).write_bytes(b"anything")
    with pytest.raises(MissingResourceError, match=r"hubconf\.py"):
        dinov2_features()


def test_torch_fidelity_has_the_models_and_hashes_that_are_looked_for() -> None:
    from torch_fidelity import feature_extractor_clip, feature_extractor_dinov2, feature_extractor_inceptionv3

    assert feature_extractor_clip.MODEL_METADATA[locate.CLIP_MODEL]["hash"] == locate.CLIP_SHA256
    assert f"{feature_extractor_dinov2.MODEL_METADATA[locate.DINOV2_MODEL]}_pretrain.pth" == locate.DINOV2_FILE
    assert feature_extractor_inceptionv3.URL_INCEPTION_V3 == download.INCEPTION_URL


# 192.0.2.0/24 is for documentation: nothing answers there. Nothing listens at port 9 here.
@pytest.mark.parametrize(
    "url", ["http://192.0.2.1/weights", "http://127.0.0.1:9/weights", "http://host.invalid/weights"]
)
def test_without_a_network_it_is_told_soon(url: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    with pytest.raises(MissingResourceError) as caught:
        download.download_inception(url)
    assert time.monotonic() - start < 3
    assert url in caught.value.message
    assert str(hub / FIDELITY_FILE) in caught.value.message
    assert "--inception PATH" in (caught.value.hint or "")
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "127.0.0.1:9"])
def test_a_proxy_is_what_must_answer(proxy: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingResourceError, match="refused"):
        download.download_inception("http://192.0.2.1/weights")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An HTTP server that gives a file."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "weights").write_bytes(b"weights of Inception")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "www")) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_what_is_fetched_is_kept_when_it_is_what_was_published(
    server: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingResourceError, match=r"is not Inception: expected sha256 6726825d0af5.*, found "):
        download.download_inception(f"{server}/weights")
    assert list(hub.iterdir()) == []
    with pytest.raises(MissingResourceError, match="404"):
        download.download_inception(f"{server}/absent")
    monkeypatch.setattr(download, "INCEPTION_SHA256", hashlib.sha256(b"weights of Inception").hexdigest())
    found = download.download_inception(f"{server}/weights")
    assert found.path == hub / FIDELITY_FILE
    assert found.path.read_bytes() == b"weights of Inception"
    assert list(hub.iterdir()) == [found.path]


def test_a_server_that_sends_without_end_is_left(hub: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(download, "INCEPTION_BYTES", 5)
    with pytest.raises(MissingResourceError, match="is not Inception"):
        download.download_inception(f"{server}/weights")
