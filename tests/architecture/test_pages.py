"""The pages that people read: two screens first, and links that lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Pages of fixtures are no pages of ours.
PAGES = sorted(
    path
    for folder in ("dis_cli", "presets", "tests")
    for path in (ROOT / folder).rglob("README.md")
    if "fixtures" not in path.parts
)
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def _anchors(page: Path) -> set[str]:
    heads = [line.lstrip("# ") for line in page.read_text().splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_the_readme_is_two_screens() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 14_000


def test_the_readme_says_early_what_was_not_measured() -> None:
    text = [line for line in (ROOT / "README.md").read_text().splitlines() if line and not line.startswith("#")]
    assert any("Not measured" in line for line in text[:15])


def test_the_readme_quotes_the_measurements() -> None:
    text = (ROOT / "README.md").read_text()
    quoted = re.findall(r"\*\*([\d.,]+(?:x| %)?)\*\*", text[text.index("\nMeasured on") : text.index("\n## Commands")])
    page = (ROOT / "tests" / "bench" / "README.md").read_text()
    measured = set(re.findall(r"\| (?:\*\*)?([\d.,]+(?:x| %)?)(?:\*\*)? (?=\|)", page))
    assert len(quoted) >= 3
    assert not set(quoted) - measured


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for text, picture in LINK.findall(page.read_text()):
        target = text or picture
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target} is no file"
        assert not anchor or anchor in _anchors(path), f"{target}: no such heading"


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [page.relative_to(ROOT).as_posix() for page in PAGES if page.relative_to(ROOT).as_posix() not in text]
    assert not missing
