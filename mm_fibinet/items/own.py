"""Encoders of a user's own: `module:my_encoders:MyEncoder`, a class of a module of the working folder.

As for models (`model_source`), naming the class is what lets its code run, and nothing else does. Its id gets the hash
of the files that it is written in, and what it was asked for: features that other code made, or another prompt, are not
taken for its own. What goes wrong in it is one line that names it, and so are vectors that are no numbers [n, dim] or
hold NaN. Vectors are copied, as an encoder may fill the same array anew for each batch.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from mm_fibinet import files
from mm_fibinet.errors import UserError
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.encoding import Encoder, Loading
from mm_fibinet.model_source import CLASS_NAME, import_module, place_of, source_files, without_class
from mm_fibinet.yaml_reader import shown

EXAMPLE = "module:my_encoders:MyEncoder"
NEEDED = ("id", "dim", "batch_size", "prepare", "prepare_all", "encode")


class OwnEncoder(Encoder):
    """An encoder of a user's class.

    Args:
        inside: what the class made.
        how: what it was called with.

    Attributes:
        id, dim, batch_size: see `Encoder`.
    """

    def __init__(self, inside: Encoder, how: Loading):
        kind = type(inside)
        code = "".join(files.sha256(path) for path in source_files(kind))
        name = f"{kind.__module__}:{kind.__qualname__}"
        asked = [f"prompt {how.prompt!r}"] if how.prompt is not None else []
        asked += [f"first {how.dim}"] if how.dim is not None else []
        made = f"module {name} {hashlib.sha256(code.encode()).hexdigest()[:16]} {inside.id}"
        self.id = how.identity(made, *asked)
        self.dim = int(inside.dim)
        self.batch_size = int(inside.batch_size)
        self._inside = inside
        self._option = how.option

    def prepare(self, content: bytes) -> tuple[Any, int]:
        """See `Encoder`."""
        [prepared] = self.prepare_all([content])
        if isinstance(prepared, BadContent):
            raise prepared
        return prepared

    def prepare_all(self, contents: Sequence[bytes]) -> list[tuple[Any, int] | BadContent]:
        """See `Encoder`."""
        prepared = self._call("prepare_all", contents)
        if not isinstance(prepared, list) or len(prepared) != len(contents):
            expected = f"expected a list of {len(contents)}, one a content"
            raise UserError(f"{self._option}: prepare_all gave {shown(prepared)}, {expected}")
        for each in prepared:
            is_sample = isinstance(each, tuple) and len(each) == 2 and _is_key(each[1])
            if not isinstance(each, BadContent) and not is_sample:
                raise UserError(f"{self._option}: prepare gave {shown(each)}, expected (sample, shape)")
        return prepared

    def encode(self, samples: list[Any]) -> np.ndarray:
        """See `Encoder`."""
        vectors = self._call("encode", samples)
        expected = f"expected numbers of shape {(len(samples), self.dim)}, a vector of `dim` numbers a sample"
        if isinstance(vectors, torch.Tensor):  # of any device and precision, with a gradient or without
            vectors = vectors.detach().cpu()
            vectors = vectors.float() if vectors.is_floating_point() else vectors
        try:
            found = np.asarray(vectors)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{self._option}: encode gave {type(vectors).__name__}, {expected}") from error
        if found.dtype.kind not in "biuf":
            what = type(vectors).__name__ if found.dtype == object or not found.ndim else found.dtype
            raise UserError(f"{self._option}: encode gave {what}, {expected}")
        if found.shape != (len(samples), self.dim):
            raise UserError(f"{self._option}: encode gave shape {found.shape}, {expected}")
        with np.errstate(over="ignore"):
            found = found.astype(np.float32)  # a copy, as the array may be filled anew
        if not np.isfinite(found).all():
            raise UserError(f"{self._option}: encode gave NaN or infinity, {expected}")
        return found

    def _call(self, method: str, given: Any) -> Any:
        return _guarded(self._option, type(self._inside), method, lambda: getattr(self._inside, method)(given))


def load_own(name: str, how: Loading) -> OwnEncoder:
    """The encoder that a user's class makes of `how`.

    Args:
        name: `module:Class`; the module is one of the working folder or of an installed package.
        how: what the class is called with.

    Raises:
        UserError: there is no such module or class, it fails, or what it makes is no encoder.
    """
    if not CLASS_NAME.fullmatch(name):
        raise UserError(f"{how.option}: expected module:FILE:CLASS, for example {EXAMPLE}")
    module_name, _, class_name = name.partition(":")
    module = import_module(module_name, how.option)
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name
        ]
        raise UserError(f"{how.option}: {without_class(module, class_name, classes or ['no class at all'])}")
    make: Callable[[Loading], Any] = found
    made = _guarded(how.option, found, "its constructor", lambda: make(how))
    missing = _guarded(how.option, found, "what it has", lambda: [each for each in NEEDED if not hasattr(made, each)])
    if missing:
        raise UserError(
            f"{how.option}: {class_name} has no {', no '.join(missing)}; expected a subclass of "
            "mm_fibinet.items.encoding.Encoder whose constructor sets id, dim and batch_size"
        )
    if not isinstance(made.id, str) or not made.id.isprintable():
        raise UserError(f"{how.option}: {class_name} has the id {shown(made.id)}, expected text of one line")
    for attribute in ("dim", "batch_size"):
        number = getattr(made, attribute)
        if not isinstance(number, Integral) or number < 1:
            raise UserError(
                f"{how.option}: {class_name} has {attribute} {shown(number)}, expected a whole number from 1"
            )
    return OwnEncoder(made, how)


def _is_key(shape: object) -> bool:
    """Whether samples can be sorted by it; a tuple can, one with a list in it cannot."""
    try:
        hash(shape)
    except TypeError:
        return False
    return True


def _guarded(option: str, kind: type, what: str, call: Callable[[], Any]) -> Any:
    """What a user's code gives; what it raises, but for an error that explains itself, as one line."""
    try:
        return call()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may do anything
        where = place_of(error, kind)
        raise UserError(f"{option}: {what} failed: {type(error).__name__}: {_text(error)}{where}") from error


def _text(error: BaseException) -> str:
    """What an error says, if it can."""
    try:
        return str(error)
    except Exception:  # its own __str__ fails
        return "its message cannot be shown"
