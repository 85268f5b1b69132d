"""What an error says of a name that is not known: what may have been meant, or which there are."""

import difflib
from collections.abc import Iterable

LISTED_BY = "run_expid.py --list"  # experiment IDs
MOST_NAMES = 40  # an error lists where a command lists them, too
MOST_NEAR = 3


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
    in_lower_case = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), in_lower_case, n=MOST_NEAR, cutoff=0.7)
    near += [each for each in in_lower_case if each.startswith(name.lower()) and each not in near]
    many = listed_by if len(names) > MOST_NAMES else ""
    near = near[:1] if name.lower() in in_lower_case else near
    if name and near:
        meant = " or ".join(in_lower_case[each] for each in near[:MOST_NEAR])
        return f"did you mean {meant}?{f' {many} shows all {len(names)}' if many else ''}"
    return f"expected one of the {len(names)} that {many} shows" if many else f"expected one of {', '.join(names)}"
