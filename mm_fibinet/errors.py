"""One kind of error for a user's mistake, and one place that prints it.

Every message says what was found, where, what was expected and what to do. Scripts run their `main` through
`run_cli`, which prints the message in one line, without a traceback, and exits with code 2. So end the machine's
refusals, too: no memory, no space, no permission. Anything else is a bug of ours and keeps its traceback.

Of several processes of a run, the first that fails speaks (`ranks`); the others end silently.

Messages name files, columns and values, which strangers wrote: `printable` keeps what they put into them from reaching
the terminal as anything but text.
"""

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable

from mm_fibinet import extras, ranks

EXIT_BUG = 1  # Python's
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended
MESSAGE_LIMIT = 4_000  # characters; a message may quote a value, not print a file
SECONDS_FOR_THE_CAUSE = 1.0  # a rank that only lost another waits so long for that one's own words
INTERRUPTED = "interrupted: run the same command again to go on, with --resume where it has that"


class UserError(Exception):
    """The input, the configuration or the machine is at fault, and the message says how to mend it."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows below the cell, one line as on the command line (a hook of IPython)."""
        return [f"error: {_shortened(printable(self))}"]


def printable(text: object) -> str:
    r"""Text as one line that a terminal shows and does not obey.

    Control characters, line breaks, escape sequences, bidirectional overrides, invisible characters and the halves of
    undecodable file names become Python's escapes (`\n`, `\x1b`, `\u202e`, `\udcff`); all other text stays.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 2 with one clear line for a `UserError`, 130 for Ctrl-C.

    Args:
        main: does the work and returns an exit code, or None for success.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may have bytes that are no text, as on stderr
    try:
        code = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's own last flush fails aloud
        code = EXIT_BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        code, text = ending(error)
        if code == EXIT_BUG and not ranks.is_rank():
            raise
        first = speaks(error)
        if first:
            print(text, file=sys.stderr)
        ranks.tell_torchrun(text.splitlines()[-1] if first else "another process failed first", first)
        if ranks.is_rank():
            _leave(code)
    sys.exit(code)


def ending(error: BaseException) -> tuple[int, str]:
    """How a process ends with an error: its exit code, and what it says: one line, or the traceback of a bug."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, INTERRUPTED
    explained = _explained(error)
    if explained is None:
        return EXIT_BUG, "".join(traceback.format_exception(error)).rstrip("\n")
    return EXIT_USER_ERROR, f"error: {_shortened(printable(explained))}"


def speaks(error: BaseException) -> bool:
    """Whether this process is the one to say what ended the run; it is when it is alone."""
    return ranks.fails_first(ranks.shared_folder(), SECONDS_FOR_THE_CAUSE if _is_lost_rank(error) else 0)


def first_line(error: BaseException) -> str:
    """The first line of what a library says, 200 characters of it; the error's kind where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__


def _leave(code: int) -> None:
    """End a rank at once: an orderly end would wait for ranks that are gone, or be warned of its process group."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def explain_os_error(error: OSError, path: object, doing: str = "write") -> UserError:
    """The `UserError` for a failed file operation: full disk, no permission, missing folder.

    Args:
        error: what the operating system said.
        path: the file or folder concerned.
        doing: the verb of the sentence: "write", "read", or "use" where it may be either.
    """
    denied = "choose a folder you may write to" if doing == "write" else f"ask its owner for the right to {doing} it"
    denied = f"permission denied: {denied}"
    advice = {
        errno.ENOSPC: "the disk is full: free some space or choose another folder",
        errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
        errno.EACCES: denied,
        errno.EPERM: denied,
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.ENOENT: "no such file or folder",
        errno.ENOTDIR: "a part of this path is a file, not a folder",
        errno.EISDIR: "this is a folder, a file was expected",
        errno.EEXIST: "a file of this name is in the way: remove it or choose another name",
        errno.ENAMETOOLONG: "this name is too long: choose a shorter one",
        errno.ELOOP: "its symbolic links go in a circle",
    }.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"cannot {doing} {path}: {advice}")


def _explained(error: BaseException) -> BaseException | None:
    """The error to print for one that `main` ended with; None for a bug."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError):
        missing = extras.advice(error.name)
        return UserError(missing) if missing else None
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        reason = str(error).strip().partition("\n")[0] or "the system gave no more"
        return UserError(f"out of memory ({reason}): use a smaller batch_size or smaller data, or a larger machine")
    if _is_lost_rank(error):
        return UserError(
            "another process of this run has ended and said nothing, perhaps for want of memory; run the same command "
            "again to go on, with --resume where it has that"
        )
    if isinstance(error, OSError) and error.errno:
        return explain_os_error(error, error.filename2 or error.filename or "a file", "use")
    return None


def _is_lost_rank(error: BaseException) -> bool:
    """Whether torch.distributed found that another process of the run is gone."""
    lost = re.search(r"Connection (closed|reset) by peer|Broken pipe|remote process exited|failed to recv", str(error))
    return ranks.is_rank() and isinstance(error, RuntimeError) and bool(lost)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no memory, which it says by a RuntimeError; told by name, so that torch is not loaded."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def _shortened(text: str) -> str:
    if len(text) <= MESSAGE_LIMIT:
        return text
    half, left_out = MESSAGE_LIMIT // 2, len(text) - MESSAGE_LIMIT
    return f"{text[:half]} [... {left_out:,} characters ...] {text[-half:]}"
