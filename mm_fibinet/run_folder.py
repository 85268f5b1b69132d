"""An experiment's run: its files, its log, and who may write there.

Nothing is written beside the data. All that a run writes is under model_root/DATASET: EXPID.model and EXPID.log as
FuxiCTR names them, the rest in the folder EXPID. A start that fails leaves all of that as it was, but for a line in the
log that says why: what an earlier run of the name left is removed (`RunFolder.clear`), and a log begun (`RunLog.open`),
only when nothing is left to be refused.
"""

import contextlib
import csv
import logging
import logging.handlers
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from mm_fibinet import files
from mm_fibinet.errors import EXIT_BUG, EXIT_INTERRUPTED, UserError, ending, explain_os_error, printable, speaks

FORMAT = "%(asctime)s P%(process)d %(levelname)s %(message)s"  # FuxiCTR's
KEPT_EARLY = 100_000  # log lines before the log file is opened


class RunFolder:
    """Where a run's files are.

    Args:
        base: model_root/DATASET.
        expid: the experiment ID.

    Attributes:
        weights: EXPID.model, FuxiCTR's name for the best weights.
        log: EXPID.log.
        folder: everything else.
        manifest, feature_map, history, result, scores, events: in that folder.
    """

    def __init__(self, base: Path, expid: str):
        self.folder = base / expid
        self.weights = base / f"{expid}.model"
        self.log = base / f"{expid}.log"
        self.manifest = self.folder / "manifest.json"
        self.feature_map = self.folder / "feature_map.json"
        self.history = self.folder / "metrics.csv"
        self.result = self.folder / "result.json"
        self.scores = self.folder / "valid_scores.parquet"
        self.events = self.folder / "tensorboard"

    @classmethod
    def of(cls, params: dict) -> "RunFolder":
        """The run of an experiment: `params` of `load_params`."""
        return cls(Path(params["model_root"]) / params["dataset_id"], params["model_id"])

    @contextlib.contextmanager
    def held(self, really: bool = True) -> Iterator[None]:
        """Nobody else may write here meanwhile; part files of runs that were killed are removed.

        Args:
            really: False for the ranks that write nothing.

        Raises:
            UserError: another process is at work here.
        """
        if not really:
            yield
            return
        with files.locked(self.folder):
            self._clean_parts()
            yield

    def clear(self) -> None:
        """Remove what an earlier run of this name left, and nothing else; the log goes when the new one is opened."""
        left = [self.weights, self.manifest, self.feature_map, self.history, self.result, self.scores]
        left += [self.folder / f"{name}.ckpt" for name in ("next", "last", "previous")]
        self._remove(left)
        try:
            if self.events.is_dir():
                shutil.rmtree(self.events)
        except OSError as error:
            raise explain_os_error(error, error.filename or self.folder, "remove") from error

    def reopen(self) -> None:
        """Remove what says that the run has finished, as it goes on: its weights become others."""
        self._remove([self.result, self.scores])

    def write_history(self, history: list[dict]) -> None:
        """metrics.csv: one line an evaluation so far."""
        with files.atomic_path(self.history) as path, open(path, "w", newline="") as opened:
            writer = csv.DictWriter(opened, fieldnames=list(history[0]))
            writer.writeheader()
            writer.writerows(history)

    def read_history(self) -> list[dict[str, str]]:
        """The lines of metrics.csv, each value a number in words or empty; none before the first evaluation.

        Raises:
            UserError: the file is damaged, or cannot be read.
        """
        try:
            with open(self.history, newline="", encoding="utf-8") as opened:
                lines = list(csv.DictReader(opened))
            for line in lines:
                if None in line or None in line.values():
                    raise ValueError("a line has not as many values as there are columns")
                for value in line.values():
                    float(value or 0)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain_os_error(error, self.history, "read") from error
        except (csv.Error, ValueError) as error:  # bytes that are no text are a ValueError, too
            raise UserError(
                f"{self.history}: cannot be read as a run's evaluations ({error}); remove {self.folder}, and the run "
                "begins anew"
            ) from error
        return lines

    def _remove(self, paths: list[Path]) -> None:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error(error, error.filename or self.folder, "remove") from error

    def _clean_parts(self) -> None:
        """Files that a killed run had begun to write, see `files.atomic_path`."""
        mine = [path for path in self.folder.glob(".*.part") if path.is_file()]
        name = f".{self.weights.name}."
        mine += [path for path in self.folder.parent.glob(".*.part") if path.name.startswith(name)]
        for path in mine:
            path.unlink(missing_ok=True)


class RunLog:
    """Log lines go to the terminal at once, and to the run's log file from `open` on, those before it included.

    What ends the run, a user's mistake or a bug, is in the file too, at the end of an earlier run's if it ends before
    `open`. Leaving the context closes what it opened.

    Args:
        path: the log file.
        quiet: write nothing (a rank other than 0) but what ends the run, if this rank is the first that it ends.
    """

    def __init__(self, path: Path, quiet: bool = False):
        self.path, self.quiet = path, quiet
        self._early = logging.handlers.MemoryHandler(KEPT_EARLY, logging.CRITICAL + 1)
        self._file: logging.FileHandler | None = None

    def __enter__(self) -> "RunLog":
        handlers = [logging.NullHandler()] if self.quiet else [logging.StreamHandler(sys.stdout), self._early]
        for handler in handlers:
            handler.setFormatter(_Lines(FORMAT))
        logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
        return self

    def open(self, append: bool) -> None:
        """Begin the log file.

        Args:
            append: go on in the file that is there (a resumed run).

        Raises:
            UserError: it cannot be written.
        """
        if self.quiet:
            return
        try:
            self._file = _log_file(self.path, "a" if append else "w")
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        self._early.setTarget(self._file)
        self._early.flush()
        logging.getLogger().removeHandler(self._early)
        logging.getLogger().addHandler(self._file)

    def __exit__(self, kind, error, traceback) -> None:
        if self._file:
            logging.getLogger().removeHandler(self._file)
            with contextlib.suppress(OSError):  # every line was flushed, or its failure raised
                self._file.close()
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)  # closes the others
        if error is not None:
            note_end(self.path, error)


def note_end(path: Path, error: BaseException) -> None:
    """Add to a run's log what ended it, or its start; of a bug the traceback, too. Only the first rank that ends does.

    Where that cannot be written, it is not: a full disk may be what ended the run.
    """
    if not speaks(error):
        return
    code, text = ending(error)
    bug = (type(error), error, error.__traceback__) if code == EXIT_BUG else None
    text = {EXIT_BUG: f"error: {error}", EXIT_INTERRUPTED: "interrupted"}.get(code, text)
    with contextlib.suppress(OSError, UserError), contextlib.closing(_log_file(path, "a")) as opened:
        opened.handle(logging.LogRecord("root", logging.ERROR, __file__, 0, text, None, bug))


def _log_file(path: Path, mode: str) -> "_LogFile":
    opened = _LogFile(path, mode, encoding="utf-8")
    opened.setFormatter(_Lines(FORMAT))
    return opened


class _Lines(logging.Formatter):
    """Messages as lines that any terminal and any encoding takes: they hold names and values of strangers' data."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


class _LogFile(logging.FileHandler):
    """A log file whose failure to be written is the run's, and not a traceback beside it."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise explain_os_error(error, self.baseFilename) from error
        super().handleError(record)


def append_result(path: Path, params: dict, valid_result: dict[str, float]) -> None:
    """Add FuxiCTR's line of one run to its results CSV."""
    metrics = " - ".join(f"{name}: {value:.6f}" for name, value in valid_result.items())
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    line = (
        f" {stamp},[command] python {' '.join(sys.argv)},[exp_id] {params['model_id']},"
        f"[dataset_id] {params['dataset_id']},[train] N.A.,[val] {metrics}\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as opened:
            opened.write(line)
    except OSError as error:
        raise explain_os_error(error, path) from error
