"""Archives beside .zip, as libarchive reads them: .tar, .rar, .7z and their like, compressed or not.

They can only be read from front to back, and nothing of them is unpacked to disk here.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mm_fibinet.errors import UserError, explain_os_error

READ_BYTES = 2**16
FILE, FOLDER, OTHER = "file", "folder", "other"  # what a member is; other is a link or a device


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: its path there.
        kind: FILE, FOLDER or OTHER.
        size: bytes, as its header says.
        blocks: gives the content in parts, until the iteration over the members passes on.
    """

    name: str
    kind: str
    size: int
    blocks: Callable[[], Iterator[bytes]]


def members(path: Path) -> Iterator[Member]:
    """The members of an archive, in its order.

    Raises:
        UserError: libarchive is not installed, or the archive is damaged or encrypted.
    """
    try:
        import libarchive
    except Exception as error:  # the binding raises whatever its search for the system library ends in
        raise UserError(
            f"{path}: reading {path.suffix} needs libarchive, found {type(error).__name__}: install libarchive-c with "
            "pip and the system library (libarchive13), or unpack it to a folder and give that as --images"
        ) from error
    name = "its first file"
    is_encrypted = libarchive.ffi.libarchive.archive_entry_is_encrypted  # the binding has no word for it

    def encrypted() -> UserError:
        return UserError(f"{path}: {name} is encrypted; unpack it to a folder and give that as --images")

    @contextlib.contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except libarchive.ArchiveError as error:
            if "encrypt" in str(error).lower() or "passphrase" in str(error).lower():
                raise encrypted() from error
            raise UserError(f"{path}: cannot be read at {name} ({error}); download or pack it again") from error
        except OSError as error:
            raise explain_os_error(error, path, "read") from error

    def blocks(entry: Any) -> Iterator[bytes]:
        if is_encrypted(ctypes.c_void_p(entry._entry_p)):  # libarchive would hand over what it cannot read
            raise encrypted()
        with explained():
            yield from entry.get_blocks(READ_BYTES)

    with explained(), libarchive.file_reader(str(path)) as entries:
        for entry in entries:
            name = entry.pathname or ""
            name = name if isinstance(name, str) else os.fsdecode(name)
            kind = FOLDER if entry.isdir else FILE if entry.isfile and not entry.islnk else OTHER
            yield Member(name, kind, entry.size or 0, partial(blocks, entry))
