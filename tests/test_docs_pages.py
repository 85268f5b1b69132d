"""What the documentation's pages say, held to the code: messages, settings, pages that exist."""

import ast
import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LEAST = 6  # characters of a message's piece that are looked for; what is shorter is found everywhere


def texts_of(tree):
    """Every text of a module but docstrings, of an f-string what is fixed in it with an ellipsis for what is not."""
    inside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node) if isinstance(part, ast.Constant)}
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@pytest.fixture(scope="module")
def source():
    """The texts of the library and the models, line breaks between them."""
    files = [path for folder in ("mm_fibinet", "model_zoo") for path in sorted((ROOT / folder).rglob("*.py"))]
    return "\n".join(text for path in files for text in texts_of(ast.parse(path.read_text(encoding="utf-8"))))


def quoted():
    """The messages of the page: what stands as code in the first column of its tables."""
    rows = re.findall(r"^\| (.+?) \| .* \|$", PAGE, re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


def test_the_page_quotes_messages_of_every_kind():
    assert len(quoted()) > 50 and len(set(quoted())) == len(quoted())


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_of_the_code(message, source):
    pieces = [piece.strip() for piece in message.split("…") if len(piece.strip()) >= LEAST]
    assert pieces, message
    for piece in pieces:
        assert piece in source, piece
