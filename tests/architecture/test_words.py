"""The first words of a file say a noun."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "dis_cli"
QUESTION = re.compile(r"(what|which|whether|how|where|who|whose|when|why|of which|from what)\b", re.IGNORECASE)


def test_no_module_opens_with_a_question_word() -> None:
    openings = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in PACKAGE.rglob("*.py")}
    assert len(openings) > 100
    assert [str(path.relative_to(PACKAGE)) for path, text in openings.items() if QUESTION.match(text)] == []
    assert QUESTION.match("What a model costs.")
    assert not QUESTION.match("Whatever is left.")
