"""One kind of error for a user's mistake, and one place that prints it.

Every message says what was found, where, what was expected and what to do. Scripts run their `main` through
`run_cli`, which prints the message without a traceback and exits with code 2; anything else is a bug of ours
and keeps its traceback.
"""

import errno
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """The input, the configuration or the machine is at fault, and the message says how to mend it."""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 2 with one clear line for a `UserError`, 130 for Ctrl-C.

    Args:
        main: does the work and returns an exit code, or None for success.
    """
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on, with --resume where it has that", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def explain_os_error(error: OSError, path: object, doing: str = "write") -> UserError:
    """The `UserError` for a failed file operation: full disk, no permission, missing folder.

    Args:
        error: what the operating system said.
        path: the file or folder concerned.
        doing: the verb of the sentence, "write" or "read".
    """
    advice = {
        errno.ENOSPC: "the disk is full: free some space or choose another folder",
        errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
        errno.EACCES: "permission denied: choose a folder you may write to",
        errno.EPERM: "permission denied: choose a folder you may write to",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.ENOENT: "no such file or folder",
        errno.ENOTDIR: "a part of this path is a file, not a folder",
        errno.EISDIR: "this is a folder, a file was expected",
        errno.EEXIST: "a file of this name is in the way: remove it or choose another name",
    }.get(error.errno, error.strerror or str(error))
    return UserError(f"cannot {doing} {path}: {advice}")
