"""Every command that the pages show, and how it is tested, as a table: `python tests/doc_commands.py`.

A command in a block of code is run by a test or says in the page what it needs that a test has not: a data set, a GPU,
Kaggle, the network, many minutes. Whatever it is, its own parser takes it and what it names is there (`doc_check.py`).
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from doc_check import OUTSIDE, SHELL, problems, problems_of_block  # noqa: E402  (found by the line above)
from doc_pages import ROOT, Block, Command, pages, read  # noqa: E402
from documented import in_ci, is_run, runners  # noqa: E402

PARSED = "parsed"
# What a command needs, by what a reader sees in the command, beside it or above it.
NEEDS = {
    "Kaggle": r"/kaggle/",
    "MicroLens": r"data/MicroLens_1M_x1|needs MicroLens",
    "Taobao-MM": r"needs Taobao-MM",
    "a GPU": r"--gpu \d|needs a GPU",
    "the network": r"^(pip|git|pre-commit) |\bmake venv\b|internet is on|needs the network",
    "a checkout of FuxiCTR": r"--models_from|\b(\.\./)?FuxiCTR/|needs a checkout of FuxiCTR",
    "minutes": r"\d (to \d+ )?(minutes|hours)|\bminutes\b",
}
OWN = r"(?<![\w./-])(IN|OUT|NAME|REPO|MY_DATA|URL)\b|\.\.\. "  # a reader's own, in the command itself


@dataclass(frozen=True)
class Row:
    """One line of the table: a command or block, the way it is tested, and by what or for want of what."""

    shown: Block | Command
    how: str
    detail: str


def rows(of: Sequence[str] | None = None, root: Path = ROOT) -> list[Row]:
    """All commands and blocks of pages, in their order; of all pages unless they are named."""
    ran, found = runners(), []
    for page in of or pages():
        for shown in read(page, root):
            if isinstance(shown, Block) and shown.language not in ("python", "yaml"):
                continue
            text = shown.code if isinstance(shown, Block) else shown.text
            places = [
                place for place in ran if place[:2] == (page, shown.heading) and all(t in text for t in place[2:])
            ]
            if places and is_run(shown):
                found.append(Row(shown, "run", ", ".join(test for place in places for test in ran[place])))
            elif isinstance(shown, Block) and shown.language == "yaml":
                found.append(Row(shown, PARSED, "read as YAML, as configs are"))
            elif isinstance(shown, Command) and not shown.fenced:
                found.append(Row(shown, PARSED, "named within a sentence"))
            elif isinstance(shown, Command) and in_ci(shown):
                found.append(Row(shown, "run", ".ci/run"))
            elif needs := needed(shown):
                found.append(Row(shown, "needs", ", ".join(needs)))
            elif isinstance(shown, Command) and shown.words[0] in (*OUTSIDE, *SHELL):
                found.append(Row(shown, "outside", "a program of others"))
            else:
                found.append(Row(shown, "untested", ""))
    return found


def needed(shown: Block | Command) -> list[str]:
    """What a page says that a command needs."""
    text = f"{' '.join(shown.words)} " if isinstance(shown, Command) else ""
    found = [name for name, sign in NEEDS.items() if re.search(sign, f"{text}\n{shown.around}", re.M)]
    return found + ["a reader's own"] * bool(re.search(OWN, text))


def main() -> int:
    """Print the table and the numbers of each kind; exit code 1 where something is untested or wrong."""
    table = rows()
    print("| where | command | tested | by, or needs |\n|---|---|---|---|")
    for row in table:
        text = " ".join(row.shown.words) if isinstance(row.shown, Command) else f"({row.shown.language} block)"
        text = text if len(text) <= 90 else f"{text[:87]}..."
        cells = (f"{row.shown.page}:{row.shown.line}", f"`{text}`", row.how, row.detail)
        print("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    kinds = Counter("within sentences" if row.detail.startswith("named") else row.how for row in table)
    print(f"\n{len(table)}: " + ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()))
    wrong = [f"{row.shown}: {problem}" for row in table for problem in of_row(row)]
    print(*wrong, sep="\n")
    return 1 if wrong else 0


def of_row(row: Row) -> list[str]:
    """What is wrong with a command or a block, each with what to do."""
    wrong = problems(row.shown) if isinstance(row.shown, Command) else problems_of_block(row.shown)
    if row.how == "untested":
        wrong.append(
            "no test runs it: mark a test that does with documented(PAGE, HEADING), see tests/documented.py, or say in "
            f"the page that it needs one of {', '.join(NEEDS)} (tests/doc_commands.py); NAME and the like stand for a "
            "reader's own"
        )
    return wrong


if __name__ == "__main__":
    sys.exit(main())
