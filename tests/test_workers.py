"""Workers: one process after another run, and to its parent each run is what it would be as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_script

from mm_fibinet import files
from mm_fibinet.compare.workers import Meter, Workers
from mm_fibinet.errors import UserError

# Stands for run_expid.py where only processes matter; what it is to do comes as its argument.
FAKE = """
import os, signal, sys, time
from mm_fibinet.compare.workers import serve
from mm_fibinet.errors import UserError
kept = []

def run(arguments):
    (what,) = arguments
    print("pid", os.getpid(), len(kept), flush=True)
    os.write(1, b"as a library in C does\\n")
    kept.append(what)
    if what == "refuse": raise UserError("the data is not there")
    if what == "bug": raise ValueError("a bug")
    if what == "crash": os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep": time.sleep(60)
    if what == "doze": time.sleep(0.5)
    while what == "compute": pass

assert sys.argv[1:] == ["--serve"], sys.argv
serve(run, tidy=lambda: print("tidy"))
"""


@pytest.fixture
def fake(tmp_path):
    """A function: the run of the fake that does this, and the file of its output."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    program = [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with files.locked(tmp_path / "out") as lock, Workers(program, lock) as workers:

        def start(what, place=0, meter=None):
            output = tmp_path / f"{len(list(tmp_path.iterdir()))}.log"
            return workers.start([*program, what], output, place, environment, meter), output

        yield start


def finished(started):
    """The exit code, the worker's process id, how many runs it had before, and what else was printed."""
    run, output = started
    code = run.wait(30)
    first, *others = output.read_text().splitlines()
    assert run.poll() == run.returncode == code
    return code, *map(int, first.removeprefix("pid ").split()), others


def begun(output):
    while "as a library" not in output.read_text():
        time.sleep(0.02)


def test_a_worker_takes_one_run_after_another(fake):
    code, pid, before, printed = finished(fake("fine"))
    assert (code, before) == (0, 0) and printed == ["as a library in C does", "tidy"]
    assert finished(fake("fine")) == (0, pid, 1, printed)
    elsewhere = fake("fine", place=1)
    assert finished(elsewhere)[1:3] != (pid, 2)
    assert finished(fake("fine", place=1))[2] == 1


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("refuse", 2, "error: the data is not there"),
        ("bug", 1, "ValueError: a bug"),
        ("crash", -signal.SIGKILL, "as a library in C does"),
    ],
)
def test_a_run_that_fails_takes_its_worker_with_it(fake, what, code, said):
    _, pid, _, _ = finished(fake("fine"))
    failed, same, before, printed = finished(fake(what))
    assert (failed, same, before) == (code, pid, 1) and said in printed
    _, other, before, _ = finished(fake("fine"))
    assert other != pid and before == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_run_is_stopped_and_its_worker_goes_on(fake):
    run, output = fake("sleep")
    begun(output)
    assert run.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(0.1)
    run.terminate()
    code, pid, _, printed = finished((run, output))
    assert code == 130 and any(line.startswith("interrupted: ") for line in printed)
    run.terminate()  # too late: nobody's run
    os.kill(pid, signal.SIGTERM)
    assert finished(fake("fine"))[:3] == (0, pid, 1)


def test_a_run_that_does_not_stop_is_killed(fake):
    run, output = fake("sleep")
    begun(output)
    run.kill()
    assert run.wait(10) == -signal.SIGKILL


def test_a_meter_counts_what_is_computed_or_the_clock(fake, tmp_path):
    of_cores, of_clock = (Meter(str(tmp_path / str(wall)), wall=wall) for wall in (False, True))
    assert of_cores.seconds() == 0
    for meter in (of_cores, of_clock, of_clock):
        assert finished(fake("doze", meter=meter))[0] == 0
    assert of_cores.seconds() < 0.4 and 1 <= of_clock.seconds() < 20


@pytest.mark.parametrize(("what", "wall"), [("compute", False), ("sleep", True)])
def test_a_meter_stops_a_run_that_has_cost_enough(fake, tmp_path, what, wall):
    _, pid, _, _ = finished(fake("fine"))
    meter = Meter(str(tmp_path / "seconds"), 0.3, wall)
    code, same, _, printed = finished(fake(what, meter=meter))
    assert (code, same) == (130, pid) and any(line.startswith("interrupted: ") for line in printed)
    assert 0.3 <= meter.seconds() < 20
    assert finished(fake("doze", meter=Meter(str(tmp_path / "more"), 60, wall)))[:3] == (0, pid, 2)


def test_a_meter_whose_file_is_damaged_says_so(tmp_path):
    (tmp_path / "seconds.txt").write_text("1.5\nx\n")
    with pytest.raises(UserError, match=r"seconds.txt: .*'x', expected seconds, a number a line; remove its folder"):
        Meter(str(tmp_path / "seconds.txt")).seconds()


def test_workers_end_with_their_parent(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    command, environment = [sys.executable, str(tmp_path / "fake.py")], {**os.environ, "PYTHONPATH": str(ROOT)}
    with files.locked(tmp_path / "out") as lock:
        with Workers(command, lock) as workers:
            done = workers.start([*command, "fine"], tmp_path / "log", 0, environment), tmp_path / "log"
            _, pid, _, _ = finished(done)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_whose_parent_is_killed_ends_after_its_run(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    command, pipe = [sys.executable, str(tmp_path / "fake.py"), "--serve"], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for requests in (0, 1):
        alone = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
        request = {"arguments": ["doze"], "output": str(tmp_path / "log"), "meter": None}
        alone.stdin.write(requests * (json.dumps(request).encode() + b"\n"))
        alone.stdin.close()
        alone.stdout.close()
        assert alone.wait(30) == 0
    assert (tmp_path / "log").read_text().splitlines()[-1] == "tidy"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is reset on Linux alone")
def test_peak_memory_is_counted_anew():
    code = (
        "import numpy as np\n"
        "from mm_fibinet.memory import forget_run, peak_memory\n"
        "np.ones(40_000_000).sum()\n"
        "first = peak_memory()\n"
        "forget_run()\n"
        "print(first - peak_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 300_000_000  # of 320 million bytes


def test_a_run_that_is_no_worker_needs_an_experiment(capsys):
    code, _, error = run_script("run_expid", "--gpu", "-1", capsys=capsys)
    assert code == 2 and error.endswith("error: the following arguments are required: --expid\n")
