"""`module:FILE:CLASS`: a user's class as an encoder, and what is said where it is none."""

import numpy as np
import pytest
import torch

from mm_fibinet.errors import UserError
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, load_encoder
from mm_fibinet.items.encoding import Loading

MODULE = '''
import helpers
import numpy as np
import torch
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.encoding import Encoder

LATE = 3  # the module's, not a class


class Lengths(Encoder):
    """How long a content is, and its first byte."""

    def __init__(self, how):
        self.id, self.dim, self.batch_size = "lengths", 2, how.batch_size

    def prepare(self, content):
        if content == b"bad":
            raise BadContent("corrupt", "it says so itself")
        return content, 0

    def encode(self, samples):
        return [[helpers.scale(len(sample)), sample[0]] for sample in samples]


class Narrow(Lengths):
    def encode(self, samples):
        return np.zeros((len(samples), 3))


class Words(Lengths):
    def encode(self, samples):
        return "two words"


class NoNumber(Lengths):
    def encode(self, samples):
        return np.full((len(samples), 2), np.nan)


class Single(Lengths):
    def prepare(self, content):
        return content


class Listed(Lengths):
    def prepare(self, content):
        return content, [1]


class Fewer(Lengths):
    def prepare_all(self, contents):
        return []


class NoneAtAll(Lengths):
    def prepare_all(self, contents):
        return None


class Wide(Lengths):
    def __init__(self, how):
        self.id, self.dim, self.batch_size = "wide", "2", how.batch_size


class Idle(Lengths):
    def __init__(self, how):
        self.id, self.dim, self.batch_size = "idle", 2, 0


class Fails(Lengths):
    def encode(self, samples):
        raise KeyError("vocabulary")


class Unmade(Lengths):
    def __init__(self, how):
        raise SystemExit("no licence")


class Complex(Lengths):
    def encode(self, samples):
        return np.ones((len(samples), 2)) * 1j


class NoText(Lengths):
    def encode(self, samples):
        raise BadContent("corrupt", "too late")


class Unsaid(Lengths):
    def encode(self, samples):
        raise type("Mute", (Exception,), {"__str__": lambda self: self.nothing})


class Nameless(Lengths):
    def __init__(self, how):
        super().__init__(how)
        self.id = None


class Reused(Lengths):
    """The same array each time, as networks that were given a place for their output have it."""

    def __init__(self, how):
        super().__init__(how)
        self.place = np.zeros((how.batch_size, 2), np.float32)

    def encode(self, samples):
        self.place[: len(samples)] = super().encode(samples)
        return self.place[: len(samples)]


class Learned(Lengths):
    def encode(self, samples):
        return torch.tensor(super().encode(samples), dtype=torch.bfloat16, requires_grad=True)


class Plain:
    def __init__(self, how):
        self.id = "plain"


class NoArgument:
    pass
'''


@pytest.fixture
def own(working_folder):
    """The user's folder with own_encoders.py; working_folder has the helper that it imports."""
    (working_folder / "own_encoders.py").write_text(MODULE)
    return working_folder


def load(name, loaders=TEXT_ENCODERS, modality="text", **how):
    return load_encoder(modality, f"module:own_encoders:{name}", Loading(torch.device("cpu"), 4, **how), loaders)


@pytest.mark.parametrize(("loaders", "modality"), [(TEXT_ENCODERS, "text"), (IMAGE_ENCODERS, "image")])
def test_vectors_are_those_of_the_class(own, loaders, modality):
    encoder = load("Lengths", loaders, modality)
    assert (encoder.dim, encoder.batch_size) == (2, 4)
    (first, shape), bad, (last, _) = encoder.prepare_all([b"abc", b"bad", b"z"])
    assert shape == 0 and isinstance(bad, BadContent)
    vectors = encoder.encode([first, last])
    assert vectors.dtype == np.float32 and vectors.tolist() == [[3, ord("a")], [1, ord("z")]]


@pytest.mark.parametrize("name", ["Reused", "Learned"])
def test_vectors_stay_as_they_were_given(own, name):
    """Those of the batch before, when the next one is encoded; of an array that is filled anew, or of torch."""
    encoder = load(name)
    first = encoder.encode([b"abc", b"z"])
    encoder.encode([b"other", b"numbers"])
    assert first.dtype == np.float32 and first.tolist() == [[3, ord("a")], [1, ord("z")]]


def test_other_code_is_another_id(own, tmp_path):
    """Of the class's own file and of what that imports; a new process reads them, here the hashes alone are asked."""
    first = load("Lengths").id
    assert first.startswith("module own_encoders:Lengths ") and first.endswith(" lengths")
    assert load("Lengths").id == first and load("Narrow").id != first
    (own / "helpers.py").write_text("def scale(alpha):\n    return 2.0 * alpha\n")
    second = load("Lengths").id
    (own / "own_encoders.py").write_text(MODULE + "\n")
    assert len({first, second, load("Lengths").id}) == 3


def test_what_a_class_is_asked_for_is_part_of_its_id(own):
    """The class reads these; the store must not give what it made of other words, in another precision or width."""
    asked = [{}, {"prompt": "a film of "}, {"prompt": "a song of "}, {"prompt": ""}, {"dim": 2}]
    asked += [{"dtype": torch.float16}, {"dtype": torch.bfloat16}]
    found = [load("Lengths", **each).id for each in asked]
    assert len(set(found)) == len(asked)
    assert found == [load("Lengths", **each).id for each in asked]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Narrow", r"encode gave shape \(1, 3\), expected numbers of shape \(1, 2\)"),
        ("Words", r"encode gave str, expected numbers of shape \(1, 2\)"),
        ("NoNumber", "encode gave NaN or infinity"),
        ("Single", r"prepare gave b'abc', expected \(sample, shape\)"),
        ("Listed", r"prepare gave \(b'abc', \[1\]\), expected \(sample, shape\)"),
        ("Fewer", r"prepare_all gave \[\], expected a list of 1, one a content"),
        ("NoneAtAll", "prepare_all gave None, expected a list of 1, one a content"),
        ("Wide", "Wide has dim '2', expected a whole number from 1"),
        ("Idle", "Idle has batch_size 0, expected a whole number from 1"),
        ("Complex", r"encode gave complex128, expected numbers of shape \(1, 2\)"),
        ("NoText", r"encode failed: BadContent: too late \(.*own_encoders.py, line \d+\)"),
        ("Unsaid", r"encode failed: Mute: its message cannot be shown \(.*own_encoders.py, line \d+\)"),
        ("Nameless", "Nameless has the id None, expected text of one line"),
        ("Fails", r"encode failed: KeyError: 'vocabulary' \(.*own_encoders.py, line \d+\)"),
        ("Unmade", r"its constructor failed: SystemExit: no licence \(.*own_encoders.py, line \d+\)"),
        ("Plain", "Plain has no dim, no batch_size, no prepare, no prepare_all, no encode; expected a subclass of"),
        ("NoArgument", "its constructor failed: TypeError: "),
        ("LATE", "there is no class LATE in .*own_encoders.py, which has Complex, Fails, Fewer, Idle, "),
        ("Nothing", "there is no class Nothing in "),
    ],
)
def test_what_is_wrong_with_a_class_is_one_line(own, name, message):
    with pytest.raises(UserError, match=f"^--text_encoder module:own_encoders:{name}: {message}") as error:
        encoder = load(name)
        [(sample, _)] = encoder.prepare_all([b"abc"])
        encoder.encode([sample])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("module:", "unknown, expected none, minilm or .*module:"),
        ("module:own_encoders", "expected module:FILE:CLASS, for example module:my_encoders:MyEncoder"),
        ("module:own_encoders.py:Lengths", "there is no module own_encoders.py, neither in "),
        ("module:nowhere:Lengths", "there is no module nowhere, neither in "),
        ("module:own_encoders:Length", r"there is no class Length in .*own_encoders.py, did you mean Lengths\?"),
        ("module:sys:Lengths", "there is no class Lengths in sys, which has "),
        (
            "module:json:Lengths",
            "there is no class Lengths in .*json.*; it hides .*json.py, whose name must be another",
        ),
    ],
)
def test_what_names_no_class_is_one_line(own, name, message):
    (own / "json.py").write_text(MODULE)
    with pytest.raises(UserError, match=f"^--text_encoder {name}: {message}"):
        load_encoder("text", name, Loading(torch.device("cpu"), 4), TEXT_ENCODERS)
