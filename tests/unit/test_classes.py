"""Which classes `--class` means, for every way in which folders may be named."""

import unicodedata

import pytest

from dis_cli.errors import UsageError
from dis_cli.workflows.sample.requests import file_labels, parse_classes

FOLDERS = ("1", "10", "2", "3")
MIXED = ("1", "2", "cat")
WORDS = ("balls", "china", "flower")
PADDED = ("01", "02", "10")
DIGITS = tuple("0123456789")
ODD = ("1-2", "a, b", "all", "Élan", "x", "X")
BELOW = ("-1", "-2", "3")


@pytest.mark.parametrize(
    ("names", "asked", "places"),
    [
        # A number, a list and a range mean the same classes.
        (FOLDERS, ["1"], [0]),
        (FOLDERS, ["1,2"], [0, 2]),
        (FOLDERS, ["1-2"], [0, 2]),
        (FOLDERS, ["1", "2"], [0, 2]),
        (FOLDERS, ["2-10"], [2, 3, 1]),
        (FOLDERS, ["1-3,10"], [0, 2, 3, 1]),
        (FOLDERS, ["3-3"], [3]),
        (FOLDERS, ["all"], [0, 1, 2, 3]),
        (FOLDERS, ["02"], [2]),
        (MIXED, ["1,cat"], [0, 2]),
        (MIXED, ["1-2"], [0, 1]),
        (PADDED, ["1"], [0]),
        (PADDED, ["01-10"], [0, 1, 2]),
        (PADDED, ["1-2"], [0, 1]),
        (("1", "01"), ["1,01"], [0, 1]),
        (BELOW, ["-2--1"], [1, 0]),
        (BELOW, ["-1,3"], [0, 2]),
        (BELOW, ["-1-3"], [0, 2]),
        # Names that are their own places, as of digits and of dataset.json.
        (DIGITS, ["0-2,7"], [0, 1, 2, 7]),
        (("00", "01", "02"), ["1"], [1]),
        # Names that are no numbers: numbers are places.
        (WORDS, ["0-1"], [0, 1]),
        (WORDS, ["2,china"], [2, 1]),
        ((), ["0-2"], [0, 1, 2]),
        ((), ["2", "0"], [2, 0]),
        # However it is written.
        (WORDS, ["China"], [1]),
        (WORDS, ["ALL"], [0, 1, 2]),
        (ODD, [unicodedata.normalize("NFD", "élan")], [3]),
        (("Straße",), ["STRASSE"], [0]),
        # A name as it is written comes first, whatever else it may look like.
        (ODD, ["1-2"], [0]),
        (ODD, ["a, b"], [1]),
        (ODD, ["all"], [2]),
        (ODD, ["x", "X"], [4, 5]),
        (("1", "2", "1-2"), ["1-2"], [2]),
        (("1", "2", "1-2"), ["1,2"], [0, 1]),
    ],
)
def test_what_is_meant(names: tuple[str, ...], asked: list[str], places: list[int]) -> None:
    assert list(parse_classes(asked, names, len(names) or 3).places) == places


@pytest.mark.parametrize(
    ("names", "asked", "message", "hint"),
    [
        (FOLDERS, "0", "No class is named 0", "`1`, `10`, `2`, `3`"),
        (FOLDERS, "0-2", "No class is named 0", "`1`, `10`, `2`, `3`"),
        (FOLDERS, "1-4", "No class is named 4", "ranges of these"),
        (FOLDERS, "3-1", "runs backwards", "`1-3`"),
        (MIXED, "0", "No class is named 0", "`cat`"),
        (("01", "001", "7"), "1", "may be any of `01`, `001`", "as the class is written"),
        (("Cat", "cAt"), "cat", "may be any of `Cat`, `cAt`", "as the class is written"),
        (WORDS, "7", "Class 7 is out of range: the model has 3 classes, 0 to 2", "`balls`, `china`, `flower`"),
        (WORDS, "-1", "Class -1 is out of range", "`balls`"),
        (WORDS, "chna", "Unknown class: `chna`", "Did you mean `china`?"),
        ((), "cat", "Unknown class: `cat`", "does not name them"),
        (WORDS, "9" * 30, "Unknown class", "0 to 2"),
    ],
)
def test_what_is_no_class(names: tuple[str, ...], asked: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_classes([asked], names, len(names) or 3)
    assert message in error.value.message
    assert hint in str(error.value.hint)


def test_which_reading_was_taken_is_said() -> None:
    said = {asked: parse_classes([asked], FOLDERS, 4).notes for asked in ("1-2", "1,3", "2", "all")}
    assert said["1-2"] == ("Class names are numbers here: `--class 1-2` means the classes named `1`, `2`",)
    assert said["1,3"] == ("Class names are numbers here: `--class 1, 3` means the classes named `1`, `3`",)
    assert "named `2`" in said["2"][0]
    assert said["all"] == ()
    for asked in ("1-2", "a, b", "all"):
        assert parse_classes([asked], ODD, 6).notes == (f"`--class {asked}` is taken as the one class of this name",)
    # Where there is one reading, there is nothing to say.
    for names, asked in ((DIGITS, "0-2"), (WORDS, "0,china"), ((), "1")):
        assert parse_classes([asked], names, len(names) or 3).notes == ()


def test_files_are_called_after_classes() -> None:
    assert file_labels(FOLDERS, 4) == ["1", "10", "2", "3"]
    assert file_labels((), 3) == ["0", "1", "2"]
    assert file_labels(("a b", "a/b", "ü", "..", "-1"), 5) == ["a_b-0", "a_b-1", "ü", "..", "-1"]
    long = file_labels(("x" * 300, "x" * 301), 2)
    assert len(set(long)) == 2
    assert max(map(len, long)) < 60
