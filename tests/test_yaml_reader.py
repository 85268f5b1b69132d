"""A YAML file is data: what it says twice, or what no setting can be, is one error, and nothing in it runs."""

import pytest

from mm_fibinet.errors import UserError
from mm_fibinet.yaml_reader import MAX_BYTES, read_value, read_yaml, shown


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "some.yaml"
    text = "\ufeff# FuxiCTR's\nBase: &base {lr: 1e-3, big: 1E+2, when: 2025-01-01, units: [64, 32], none: null}\n"
    path.write_text(text + "own: {<<: *base, lr: 5.e-4, on_time: yes, hex: 0x10}\n", encoding="utf-8")
    base = {"lr": 0.001, "big": 100.0, "when": "2025-01-01", "units": [64, 32], "none": None}
    assert read_yaml(path) == {"Base": base, "own": {**base, "lr": 0.0005, "on_time": True, "hex": 16}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: 2\na: 3", "'a' is given twice, the second time in line 3"),
        (b"a: {x: 1, y: 2, x: 1}", "'x' is given twice"),
        (b"a: {<<: {x: 1}, <<: {y: 1}}", "'<<' is given twice"),
        ("模型: DIN".encode("gbk"), "is not UTF-8 text (byte 0xd0 in line 1); save it as UTF-8"),
        ("a: 1\n# Größe".encode("latin-1"), "is not UTF-8 text (byte 0xf6 in line 2)"),
        ("a: 1".encode("utf-16"), "is not UTF-8 text (it begins as UTF-16 does)"),
        (b"PAR1\x00\x01\x02", "not valid YAML"),
        (b"1: {model: DIN}", 'the name 1 is read as a number; write it in quotes: "1"'),
        (b"on: {model: DIN}", "the name True is read as true or false; write it in quotes"),
        (b"1.5: {model: DIN}", "the name 1.5 is read as a number"),
        (b"~: {model: DIN}", "the name None is read as nothing"),
        (b"a: {b: {2: 3}}", "the name 2 is read as a number"),
        (b"? [a, b]\n: c", "not valid YAML"),
        (b"[1, 2]", "is [1, 2], expected a mapping of names to settings"),
        (b"", "is None, expected a mapping"),
        (b"a: .nan", "has nan, expected finite numbers"),
        (b"a: [1, -.inf]", "has -inf, expected finite numbers"),
        (b"a: 1e999", "has inf, expected finite numbers"),
        (b"a: " + b"9" * 5000, "a number of 5000 characters in line 1"),
        (b"a: 0x" + b"f" * 5000, "a number of 5002 characters in line 1"),
        (b"a: !!int abc", "a tag (!!int, !!bool, ...) does not fit its value"),
        (b"a: !!bool abc", "a tag (!!int, !!bool, ...) does not fit its value"),
        (b"a: !!set {b}", "could not determine a constructor"),
        (b"a: !!timestamp 2025-01-01", "could not determine a constructor"),
        (b"a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        (b"a: " + b"[" * 3000, "nested too deeply"),
        (b"a: " + b"[" * 60 + b"]" * 60, "nested too deeply, expected at most 40"),
        (b"a: &a [*a]", "nested too deeply"),
        (b"a: &a {b: *a}", "nested too deeply"),
        (b'a: "\\ud800"', "which is no text (half a character)"),
        (b"a: *b", "not valid YAML: found undefined alias"),
        (b"a: 1\n---\nb: 2", "not valid YAML: expected a single document"),
        (b"a: {b: [1", "not valid YAML"),
        (b"#" * (MAX_BYTES + 1), "more than 4 MB, expected a config"),
    ],
    ids=range(34),
)
def test_what_cannot_be_is_one_error(tmp_path, content, message):
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert len(str(error.value)) < 600 + len(str(path)) and "\n" not in str(error.value)


def test_bombs_of_aliases_and_of_merges():
    doubled = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 25))
    with pytest.raises(UserError, match="more than 1,000,000 values once its aliases are followed"):
        read_value(f"a0: &a0 [1, 1]\n{doubled}", "bomb")
    merged = "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 40))
    last = read_value(f"a0: &a0 {{k0: 0}}\n{merged}", "chain")["a39"]
    assert last == {"k0": 0, **{f"k{i}": 1 for i in range(1, 40)}}
    with pytest.raises(UserError, match=r"more than 5000 aliases"):
        read_value(f"a: &a 1\nb: [{'*a, ' * 5001}]", "many")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="this is a folder"):
        read_yaml(tmp_path)


def test_values_are_shown_on_one_line():
    assert shown("a\nb\x1b[2J") == r"'a\nb\x1b[2J'"
    assert len(shown(list(range(1000)))) == 120
