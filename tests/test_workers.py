"""Workers: one process after another run, and to its parent each run is what it would be as a process of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, make_dataset, run_script

import model_zoo
from mm_fibinet import files
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.commands import Home
from mm_fibinet.compare import jobs
from mm_fibinet.compare.workers import Workers

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

        def start(what, place=0):
            output = tmp_path / f"{len(list(tmp_path.iterdir()))}.log"
            return workers.start([*program, what], output, place, environment), output

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


def test_workers_end_with_their_parent(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    command, environment = [sys.executable, str(tmp_path / "fake.py")], {**os.environ, "PYTHONPATH": str(ROOT)}
    with files.locked(tmp_path / "out") as lock:
        with Workers(command, lock) as workers:
            done = workers.start([*command, "fine"], tmp_path / "log", 0, environment), tmp_path / "log"
            _, pid, _, _ = finished(done)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    alone = subprocess.Popen([*command, "--serve"], stdin=subprocess.PIPE, env=environment)  # whose parent is killed
    alone.stdin.close()
    assert alone.wait(30) == 0


@pytest.mark.slow
def test_a_run_in_a_worker_is_that_of_a_process(tmp_path, capsys):
    """The same bytes of weights and scores, after another run of the same worker that failed or not."""
    config = make_dataset(tmp_path)
    home = Home.repository(ROOT)
    expids = ["FiBiNET_test_no_emb", "FiBiNET_test"]
    planned = jobs.plan(str(config), expids, [7], model_zoo, tmp_path / "out")
    with jobs.locked(tmp_path / "out") as lock, Workers(home.train, lock) as workers:
        jobs.run_all(planned, [*home.train, "--config", str(config)], [jobs.CPU], lock, workers)
    capsys.readouterr()
    for job in planned:
        root = tmp_path / "alone"
        arguments = ["--config", config, "--expid", job.expid, "--model_root", root, "--set", "seed=7", "verbose=0"]
        assert run_script("run_expid", *arguments, capsys=capsys)[0] == 0
        assert job.error is None and job.result()
        for name in (f"{job.expid}.model", f"{job.expid}/valid_scores.parquet"):
            assert (job.folder.parent / name).read_bytes() == (root / "TEST_DATA" / name).read_bytes(), name
        assert RunCheckpoints(job.folder, "").exist()


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
