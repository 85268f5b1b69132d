"""A run's evaluations as TensorBoard event files (`tensorboard: true`).

The file is made anew whenever a run starts or resumes, from the history the run carries with it, so every evaluation
is in it exactly once. `tensorboard --logdir checkpoints` shows all runs.
"""

import shutil
from pathlib import Path
from typing import Any

from mm_fibinet.errors import UserError, explain_os_error


class EventFiles:
    """Writes one scalar per metric and evaluation.

    Args:
        folder: kept for the event files alone; what an earlier start of the run left there is removed.

    Raises:
        UserError: the package tensorboard is missing.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "tensorboard: true needs the package tensorboard, which is not installed; pip install tensorboard, "
                "or set tensorboard: false"
            ) from error
        self.folder = folder
        self.make_writer = SummaryWriter
        self.writer: Any = None  # of tensorboard
        self.written = 0

    def __call__(self, history: list[dict]) -> None:
        """Write the evaluations that are not written yet.

        Args:
            history: as `Trainer` keeps it; `step` is the x axis.
        """
        try:
            if self.writer is None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.writer = self.make_writer(str(self.folder))
            for entry in history[self.written :]:
                for name in entry.keys() - {"epoch", "step"}:
                    self.writer.add_scalar(name, entry[name], entry["step"])
            self.writer.flush()
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        self.written = len(history)
