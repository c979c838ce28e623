"""Whatever the product tells a user to type is understood when it is typed; what is looked at says support/hints.py."""

import pytest
from support.hints import RAISED_BY, ROOT, Text, problems_of, texts


def test_all_that_is_told_is_understood_when_it_is_typed(tally) -> None:
    told = list(texts())
    problems = [problem for text in told for problem in problems_of(text)]
    assert not problems, "\n".join(["", *problems])
    named = [text for text in told if "--" in text.words or "dis " in text.words or "=" in text.words]
    assert len(named) > 500
    tally("texts looked at, of which name something to type", f"{len(told)}, {len(named)}")


@pytest.mark.parametrize(
    ("words", "file", "problem"),
    [
        ("go on without them: `--on-bad skip`", "data/images/verify.py", "`--on-bad` is no option of `dis train`"),
        ("go on without them: --on-bad skip", "data/images/verify.py", "`--on-bad` is no option of `dis train`"),
        ("Give its folder with `--vae DIR`", "codecs/locate.py", "`--vae` is no option of `dis train`"),
        ("Give `--frobnicate`", "errors.py", "`--frobnicate` is no option of any command"),
        ("Give `--format jpg`", "cli/sample.py", "`--format` does not take `jpg`"),
        ("Write `--format=jpg`", "cli/sample.py", "`--format` does not take `jpg`"),
        ("Leave `-x` out", "cli/sample.py", "`-x` is no option of `dis sample`"),
        ("See `dis sampel --ckpt PATH`", "errors.py", "there is no command `sampel`"),
        ("Try `dis sample --ckpt`", "errors.py", "requires an argument"),
        ("Try `dis checkpoint export RUN`", "errors.py", "Missing option '--out'"),
        ("Try `dis sample --ckpt RUN -n many`", "errors.py", "many"),
        ("Try `dis sample --ckpt RUN sample.stps=3`", "errors.py", "`sample.stps` is no setting"),
        ("Try `dis train --preset dis-xxl`", "errors.py", "there is no preset `dis-xxl`"),
        ("Try `dis train --json=xyz`", "errors.py", "Unknown form of --json"),
        ("Start `torchrun --nproc-per-node 2 -m dis_cli train --epochs 3`", "errors.py", "No such option: --epochs"),
        ("Make it.\n\nExample: dis flops --sise xl", "cli/flops.py", "No such option: --sise"),
        ("score   dis eval-fid --fid RUN", "cli/train.py", "No such option: --fid"),
        ("Set train.stepz=3", "workflows/train/train.py", "`train.stepz` is no setting"),
        ("lower train.batch_sise", "workflows/train/train.py", "`train.batch_sise` is no setting"),
        ("Set data.source=rar", "data/open.py", "`data.source`: got `rar`"),
        ("Set `engine=cuda`", "workflows/build.py", "`engine`: got `cuda`"),
        ("Set model.depth=3", "workflows/latents.py", "not understood by `dis encode-latents`: name its option"),
        ("set DIS_DEBUGGING=1", "cli/app.py", "nothing reads the variable DIS_DEBUGGING"),
    ],
)
def test_a_wrong_hint_is_found(words: str, file: str, problem: str) -> None:
    found = problems_of(Text(f"dis_cli/{file}", 7, words))
    assert any(problem in each for each in found), found
    assert all(each.startswith(f"dis_cli/{file}:7: ") for each in found)


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("Leave them out: `--on-bad skip` (or data.on_bad=skip)", "data/images/verify.py"),
        ("Set data.source=folder, or data.download=true.", "data/open.py"),
        ("set sample.steps (`--steps`) to 25", "config/sampling.py"),
        ("Encode them by `dis encode-latents` with `--dtype float32`", "workflows/train/train.py"),
        ("Try `dis sample --ckpt RUN --format FORMAT --class 0-4 sample.eta=0.5 | head -1`", "errors.py"),
        ("`pip install --no-build-isolation x` and `hf download --local-dir DIR`", "errors.py"),
        ("It was written by `dis checkpoint export`", "errors.py"),
    ],
)
def test_a_right_hint_is_not(words: str, file: str) -> None:
    assert problems_of(Text(f"dis_cli/{file}", 7, words)) == []


def test_texts_are_found_wherever_they_stand(tmp_path) -> None:
    (tmp_path / "dis_cli" / "cli").mkdir(parents=True)
    (tmp_path / "dis_cli" / "a.py").write_text(
        '"""Not told: `--a0`."""\n\nHINT = "Use `--a1`"\n\n\ndef f(x):\n    """Not told: `--a2`."""\n'
        '    raise E(f"It is {x}" + (f", or {x}: `--a3`" if x else ""), hint="A " "`--a4`")\n'
    )
    (tmp_path / "dis_cli" / "cli" / "b.py").write_text(
        'def show():\n    """Show.\n\n    Example: dis runs --a5\n    """\n'
    )
    (tmp_path / "README.md").write_text("`dis runs --a6`\n\n```console\n$ dis runs --a7  # all\n```\n")
    (tmp_path / "Makefile").write_text('demo:\n\t$(BIN)/dis runs --a8\n\t"$(BIN)/dis runs --a9" "more"\n')
    problems = "\n".join(problem for text in texts(tmp_path) for problem in problems_of(text))
    assert [name for name in map("--a{}".format, range(10)) if name in problems] == [
        f"--a{number}" for number in (1, 3, 4, 5, 6, 7, 8, 9)
    ]


def test_the_files_of_the_map_exist() -> None:
    assert [name for name in RAISED_BY if not (ROOT / "dis_cli" / name).exists()] == []
