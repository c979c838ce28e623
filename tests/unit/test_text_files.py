"""Text files as editors on any system write them: with a byte order mark, with other line ends, in other encodings."""

import json
import secrets
from pathlib import Path

import pytest
from support.celeba import make_celeba
from torchvision.datasets import CelebA

from dis_cli.checkpoints.manifest import parse_json
from dis_cli.codecs.locate import locate_vae
from dis_cli.config.presets import load_preset, preset_dir, read_config, validate_file
from dis_cli.data.latents.format import FORMAT, VERSION, read_record
from dis_cli.data.open import open_source
from dis_cli.errors import ConfigError, DataError
from dis_cli.runs.folder import RunDir
from dis_cli.runs.summary import find_runs
from dis_cli.runs.trackers import _wandb_id
from dis_cli.text_files import NotUtf8, decode_text, read_text

MARK = b"\xef\xbb\xbf"
# what an editor on Windows may make of a file
FORMS = {
    "mark": lambda data: MARK + data,
    "windows": lambda data: data.replace(b"\n", b"\r\n"),
    "both": lambda data: MARK + data.replace(b"\n", b"\r\n"),
}
TEXT = 'name = "caf\u00e9"\n# second line\n'


@pytest.fixture(params=FORMS)
def rewritten(request):
    """Writes a file again, as an editor does."""

    def write(path: Path) -> Path:
        path.write_bytes(FORMS[request.param](path.read_bytes()))
        return path

    return write


def test_text_is_the_same_whatever_wrote_it(rewritten, tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(TEXT.encode())
    assert read_text(rewritten(path)) == TEXT
    assert decode_text(b"") == decode_text(MARK) == ""
    assert decode_text(b"a\rb\r\nc\n") == "a\nb\nc\n"
    # one mark only
    assert decode_text(MARK + MARK + b"x") == "\ufeffx"


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-16", "line 1: not UTF-8 but UTF-16, as PowerShell"),
        ("utf-32", "line 1: not UTF-8 but UTF-32, as PowerShell"),
        ("utf-16-le", "line 1: holds zero bytes, as UTF-16 without a byte order mark does"),
        ("utf-16-be", "line 1: holds zero bytes, as UTF-16 without a byte order mark does"),
        ("latin-1", "line 2: not UTF-8"),
    ],
)
def test_other_encodings_are_named(encoding, told):
    text = "seed = 1\nname = 'caf\u00e9'\n" if encoding == "latin-1" else "seed = 1\n"
    with pytest.raises(NotUtf8) as caught:
        decode_text(text.encode(encoding))
    assert str(caught.value).startswith(told)


def test_presets_and_runs(rewritten, tmp_path):
    plain = preset_dir() / "dis-xs-digits.toml"
    run = RunDir(tmp_path / "run")
    run.create()
    run.config_path.write_bytes(plain.read_bytes())
    run.events_path.write_text('{"event": "started"}\n{"event": "step", "step": 3, "loss": 0.5}\n')
    for path in (run.config_path, run.events_path):
        rewritten(path)
    assert read_config(run.config_path) == load_preset("dis-xs-digits")
    assert validate_file(run.config_path) == []
    (summary,) = find_runs(tmp_path)
    assert summary.problems == ()
    assert (summary.preset, summary.step) == ("dis-xs-digits", 3)


def test_a_preset_in_utf_16_is_refused_by_name(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes("seed = 1\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="line 1: not UTF-8 but UTF-16") as caught:
        load_preset(path)
    assert "UTF-8" in str(caught.value.hint)


def test_json_that_people_may_edit(rewritten, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"format": FORMAT, "version": VERSION}, indent=1) + "\n")
    rewritten(path)
    assert read_record(path)["format"] == FORMAT
    assert parse_json(path, path.read_bytes())["version"] == VERSION
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL",\n "scaling_factor": 0.5}\n')
    (folder / "diffusion_pytorch_model.safetensors").touch()
    rewritten(folder / "config.json")
    assert locate_vae(str(folder)).scaling_factor == 0.5


def test_labels(rewritten, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    path = tmp_path / "dataset.json"
    path.write_text('{"labels":\n [["a.png", 1], ["b.png", 0]]}\n')
    rewritten(path)
    assert open_source("folder", tmp_path, image_size=8, channels=3).labels.tolist() == [1, 0]


def test_the_lists_of_celeba(rewritten, tmp_path, monkeypatch):
    monkeypatch.setattr(CelebA, "file_list", make_celeba(tmp_path))
    expected = open_source("celeba", tmp_path, split="all", image_size=8, channels=3)
    lists = sorted((tmp_path / "celeba").glob("*.txt"))
    assert len(lists) == 5
    for path in lists:
        rewritten(path)
    found = open_source("celeba", tmp_path, split="all", image_size=8, channels=3)
    assert found.fingerprint == expected.fingerprint
    assert found.sample_name(0) == "000001.jpg"
    # another content is found all the same
    lists[0].write_bytes(lists[0].read_bytes() + b"x\n")
    with pytest.raises(DataError, match="missing or damaged"):
        open_source("celeba", tmp_path, image_size=8, channels=3)
    lists[0].write_bytes("x".encode("utf-16"))
    with pytest.raises(DataError, match=rf"missing or damaged .*\({lists[0].name}, line 1: not UTF-8 but UTF-16"):
        open_source("celeba", tmp_path, image_size=8, channels=3)


def test_the_name_of_a_tracked_run(rewritten, tmp_path):
    path = tmp_path / "id"
    path.write_text(f"{(name := secrets.token_hex(4))}\n")
    assert _wandb_id(rewritten(path)) == name
