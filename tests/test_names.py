"""What an error says of an unknown name."""

import pytest

from mm_fibinet.names import LISTED_BY, MOST_NAMES, expected_one_of

MANY = [f"Model{number}_demo" for number in range(MOST_NAMES)] + ["DIN_MicroLens_1M_x1"]


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("b", ["c", "a"], "expected one of a, c"),
        ("", ["c", "a"], "expected one of a, c"),
        ("a", [], "which has none"),
        ("small", ["suite_small", "smal", "tiny"], "did you mean smal?"),
        ("SMALL", ["small", "small2", "tiny"], "did you mean small?"),  # nothing but the case differs
        (
            "sui",
            ["suite_b", "suite_c_long", "suite_d_long", "a"],
            "did you mean suite_b or suite_c_long or suite_d_long?",
        ),
        ("DIN", MANY, "did you mean DIN_MicroLens_1M_x1? run_expid.py --list shows all 41"),  # a model, not an ID
        ("xyz", MANY, "expected one of the 41 that run_expid.py --list shows"),
    ],
)
def test_what_may_be_meant_or_which_there_are(name, known, said):
    assert expected_one_of(name, known, LISTED_BY) == said


def test_without_a_command_that_lists_them_all_are_named():
    assert expected_one_of("xyz", MANY) == f"expected one of {', '.join(sorted(MANY))}"
