"""What an error says of a name that is not known: what may have been meant, or which there are."""

import difflib
from collections.abc import Iterable

LISTED_BY = "run_expid.py --list"  # experiment IDs
MOST_NAMES = 40  # an error lists where a command lists them, too
MOST_NEAR = 3
SHORTEST_START = 3  # letters of a name that others may begin with


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for the name that is the same in another case, or those that are near or begin with it, or ""."""
    names, asked = sorted(known), name.lower()
    near = [each for each in names if each.lower() == asked]
    if not near:
        near = difflib.get_close_matches(name, names, n=MOST_NEAR, cutoff=0.7)
    if not near and len(asked) >= SHORTEST_START:
        near = [each for each in names if each.lower().startswith(asked)]
    return f"did you mean {' or '.join(near[:MOST_NEAR])}?" if near else ""


def expected_one_of(name: str, known: Iterable[str], listed_by: str = "") -> str:
    """What an error says of a name that is not known: those that may be meant, or else the known ones.

    Args:
        name: what was written.
        known: the names that would do.
        listed_by: a command that shows more of them than an error can.
    """
    names = sorted(known)
    if not names:
        return "which has none"
    many = listed_by if len(names) > MOST_NAMES else ""
    if meant := did_you_mean(name, names):
        return f"{meant}{f' {many} shows all {len(names)}' if many else ''}"
    return f"expected one of the {len(names)} that {many} shows" if many else f"expected one of {', '.join(names)}"
