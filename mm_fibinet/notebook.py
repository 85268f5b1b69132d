"""The commands from a notebook's cells: each in a process of its own, its output below the cell as it comes.

A process of its own gives its memory, the GPU's too, back when it ends, and is the very command that the documentation
shows, under torchrun where there are several GPUs. Unlike after a line that begins with `!`, a command that failed ends
the cell, and with it a notebook that runs unattended.
"""

import codecs
import dataclasses
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from mm_fibinet.errors import UserError, printable
from mm_fibinet.kaggle import EMBEDDED, Data, find_data
from mm_fibinet.parquet_reader import open_parquet

SECONDS_TO_STOP = 120  # a run that is interrupted saves its state
EMBEDDING = "item_emb_d128"


def gpus() -> int:
    """How many GPUs torch can use."""
    import torch  # seconds, and only where it is asked for

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def run(command: str, *arguments: object, processes: int = 1, hours: float | None = None) -> None:
    """Run a command of mm-fibinet.

    Args:
        command: train, predict, embed, ...
        *arguments: its command line.
        processes: started by torchrun when there are several, one a GPU.
        hours: then it is asked to stop, which a training does with its state saved; None for as long as it takes.

    Raises:
        UserError: it failed; what it printed says why.
    """
    program = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    _run_module(*program, "mm_fibinet", command, *arguments, hours=hours)


def demo_data(working: str | os.PathLike, *options: object) -> Data:
    """Generate the demo data, in place of data that are not attached.

    Args:
        working: the folder of one's own outputs; the data go to its folder `demo`.
        *options: of mm_fibinet.demo.data.
    """
    folder = Path(working) / "demo"
    _run_module("mm_fibinet.demo.data", "--output", folder, *options)
    data = find_data(folder, working)
    if data is None:
        raise UserError(f"{folder}: no demo data there, though they were just made")
    return data


def with_embedding(data: Data, working: str | os.PathLike, *options: object) -> Data:
    """The data with an item embedding, which is made (task 1) where they have none, as the demo's.

    Args:
        data: of `find_data` or `demo_data`.
        working: where EMBEDDED is written.
        *options: of `embed`.
    """
    if data.embedded or EMBEDDING in open_parquet(data.item_info).schema_arrow.names:
        return data
    output = Path(working) / EMBEDDED
    run("embed", *data.embed_arguments, "--output", output, *options)
    return dataclasses.replace(data, embedded=output)


def _run_module(*arguments: object, hours: float | None = None) -> None:
    """`python -m` with these arguments; what it prints is printed while it runs. See `run`."""
    line = ["-m", *map(str, arguments)]
    print(printable(f"$ python {shlex.join(line)}"), flush=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    time_over = threading.Event()
    with subprocess.Popen(
        [sys.executable, *line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:

        def stop() -> None:
            time_over.set()
            process.terminate()
            _end(process, process.wait)

        timer = threading.Timer((hours or 0) * 3600, stop)
        timer.daemon = True
        if hours is not None:
            timer.start()
        try:
            _print_all(process)
        except KeyboardInterrupt:  # the notebook's stop button, which the process has got as well
            print("stopping: a run saves its state first", flush=True)
            _end(process, process.communicate)
            raise
        finally:
            timer.cancel()
    if process.returncode and not time_over.is_set():
        raise UserError(f"{arguments[0]} ended with exit code {process.returncode}; its last lines above say why")
    if process.returncode:
        print(f"stopped after {hours:g} hours; --resume goes on from what was saved", flush=True)


def _print_all(process: subprocess.Popen) -> None:
    """Print as it comes, so that a line that is written over stays one."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while block := process.stdout.read1(1 << 16):  # type: ignore[union-attr]
        print(decoder.decode(block), end="", flush=True)


def _end(process: subprocess.Popen, wait: Callable) -> None:
    """Wait for a process that was asked to stop, and no longer than it may take."""
    try:
        wait(timeout=SECONDS_TO_STOP)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
