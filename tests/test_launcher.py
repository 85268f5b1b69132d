"""Several ranks on one machine: what one says of its failure is all that is said, and none is left behind."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from mm_fibinet import ranks

LAUNCH = """
import sys
from mm_fibinet.errors import run_cli
from mm_fibinet.launcher import launch
run_cli(lambda: launch([sys.executable, "-c", sys.argv[1]], [-1, -1]))
"""
RANK = """
import os, signal, sys, time
from pathlib import Path
from mm_fibinet.errors import UserError, run_cli
rank = int(os.environ["RANK"])
def say(*what):
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())  # at once, or two ranks' lines mix
def main():
    {body}
run_cli(main)
"""
TORCH = """
import os, signal, sys, time, torch
from mm_fibinet import distributed
from mm_fibinet.errors import UserError, run_cli
def main():
    world = distributed.start(-1)
    values = torch.ones(3)
    for step in range(3):
        distributed.sum_over_ranks(values)
    if world.rank == 1:
        {body}
    distributed.sum_over_ranks(values)
    time.sleep(1000)
run_cli(main)
"""


def launched(code, launch=LAUNCH, **environment):
    """A process that launches two ranks of a program."""
    return subprocess.Popen(
        [sys.executable, "-c", launch, code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whoever runs the tests under nohup
    )


def ended(process):
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def run(body, program=RANK):
    return ended(launched(program.format(body=body)))


def test_every_rank_knows_its_place():
    body = "say(*(os.environ[n] for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'OMP_NUM_THREADS')))"
    process = launched(RANK.format(body=body), OMP_NUM_THREADS="3")
    code, out, err = ended(process)
    assert (code, sorted(out.splitlines()), err) == (0, ["0 2 0 3", "1 2 1 3"], "")


def test_the_cores_are_shared():
    body = "say(len(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    process = subprocess.run(
        [sys.executable, "-c", LAUNCH, RANK.format(body=body)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )
    for line in process.stdout.splitlines():
        cores, threads = map(int, line.split())
        assert threads == max(cores // 2, 1)


def test_an_error_of_all_is_said_once():
    code, out, err = run("raise UserError('batch_size is -1')")
    assert (code, out, err) == (2, "", "error: batch_size is -1\n")


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_ends_the_others(failing):
    code, out, err = run(f"if rank == {failing}: raise UserError(f'of {{rank}}')\n    time.sleep(1000)")
    assert (code, out, err) == (2, "", f"error: of {failing}\n")


def test_a_bug_keeps_its_traceback_once():
    code, _, err = run("return {}['label']")
    assert code == 1 and err.count("Traceback") == 1 and err.endswith("KeyError: 'label'\n")


def test_a_rank_that_is_killed_is_named():
    code, _, err = run("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n    time.sleep(1000)")
    assert code == 2 and err == "error: process 1 of 2 (--gpu -1) was ended by SIGKILL (out of memory?)\n"


def hurried(name):
    """LAUNCH, with a second of patience."""
    return LAUNCH.replace("run_cli(", f"from mm_fibinet import launcher; launcher.{name} = 1\nrun_cli(", 1)


def test_a_rank_that_does_not_listen_is_killed():
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    if rank == 0: time.sleep(1); raise UserError('no')\n"
    body += "    say(os.getpid()); time.sleep(1000)"
    command = [sys.executable, "-c", hurried("SECONDS_TO_END"), RANK.format(body=body)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=90)
    assert (done.returncode, done.stderr) == (2, "error: no\n")
    assert not alive(int(done.stdout))


def test_ranks_that_do_not_listen_to_the_user_are_killed():
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(os.getpid()); time.sleep(1000)"
    process = launched(RANK.format(body=body), hurried("SECONDS_TO_SAVE"))
    pids = [int(process.stdout.readline()) for _ in range(2)]
    process.terminate()
    code, _, err = ended(process)
    assert code == 130 and err.startswith("interrupted: ") and err.count("\n") == 1
    assert not any(map(alive, pids))


def alive(pid):
    """Whether a process runs (one that ended and was not collected does not)."""
    try:
        with open(f"/proc/{pid}/stat") as opened:
            return opened.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


LISTENING = """came = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append("INT"))
    signal.signal(signal.SIGTERM, lambda number, frame: came.append("TERM"))
    say(os.getpid())
    while not came: time.sleep(0.01)
    time.sleep(0.5 * (rank + 1))
    say(*came)
    raise KeyboardInterrupt"""


@pytest.mark.parametrize(("sent", "received"), [("SIGINT", "INT"), ("SIGTERM", "TERM"), ("SIGHUP", "TERM")])
def test_a_signal_goes_to_all_and_all_may_save(sent, received):
    process = launched(RANK.format(body=LISTENING))
    for _ in range(2):
        assert process.stdout.readline()
    os.killpg(process.pid, getattr(signal, sent))  # as a terminal does: to all of the foreground
    code, out, err = ended(process)
    assert code == 130 and out.splitlines() == [received, received]  # once each, and the slower one was waited for
    assert err.startswith("interrupted: run the same command again") and err.count("\n") == 1


def test_ranks_that_have_no_handler_yet():
    body = "signal.signal(signal.SIGTERM, signal.SIG_DFL); say('ready'); time.sleep(1000)"
    process = launched(RANK.format(body=body))
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.terminate()
    code, _, err = ended(process)
    assert code == 130 and err.startswith("interrupted: ") and err.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for it")
def test_ranks_end_with_a_launcher_that_is_killed():
    process = launched(RANK.format(body="say(os.getpid()); time.sleep(1000)"))
    pids = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    process.communicate()


@pytest.mark.parametrize(
    ("body", "code", "expected"),
    [
        ("raise UserError('no space')", 2, r"error: no space\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 2, r"error: process 1 of 2 .* SIGKILL \(out of memory\?\)\n"),
        ("values.reshape(7)", 1, r"Traceback(?s:.*)RuntimeError: shape .*\n"),
    ],
)
def test_ranks_that_wait_for_the_one_that_failed(body, code, expected):
    """In a collective, which the failing rank never enters."""
    ended_with, out, err = run(body, TORCH)
    assert ended_with == code and out == "" and re.fullmatch(expected, err) and err.count("Traceback") == (code == 1)


def test_a_rank_that_lost_another_says_so_if_nobody_else_does(tmp_path):
    """As on several machines, where the one that failed is elsewhere."""
    program = TORCH.format(body="os.kill(os.getpid(), signal.SIGKILL)")
    place = {**os.environ, "WORLD_SIZE": "2", ranks.SHARED: str(tmp_path)}
    first, second = (
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        for environment in ({**place, "RANK": str(rank)} for rank in range(2))
    )
    code, _, err = ended(first)
    assert code == 2 and err.startswith("error: another process of this run has ended") and err.count("\n") == 1
    assert ended(second)[0] == -signal.SIGKILL


def test_under_torchrun_the_error_is_said_once_and_in_its_summary(tmp_path):
    """Its own traceback in between is not ours to leave out."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(body="raise UserError('batch_size is -1')"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and done.stdout == "" and lines.count("error: batch_size is -1") == 1
    (cause,) = [line for line in lines if "traceback : error: " in line]
    assert cause.endswith("error: batch_size is -1") and lines.index(cause) == len(lines) - 2


@pytest.mark.parametrize(
    ("local_rank", "gpus", "own"),
    [
        (None, [3], 3),
        (None, [-1], -1),
        ("1", [0], 1),
        ("1", [-1], -1),
        ("0", [2, 0], 2),
        ("1", [2, 0], 0),
        ("1", [-1] * 2, -1),
    ],
)
def test_the_gpu_of_a_rank(local_rank, gpus, own, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert ranks.own_gpu(gpus) == own


def test_the_first_to_fail_is_one(tmp_path):
    assert ranks.fails_first(None) and ranks.fails_first(None)
    assert ranks.fails_first(tmp_path) and ranks.fails_first(tmp_path)
    code = "import sys; from pathlib import Path; from mm_fibinet import ranks\n"
    code += "print(ranks.fails_first(Path(sys.argv[1])))"
    for folder, answer in ((tmp_path, "False\n"), (tmp_path / "gone", "True\n")):
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == answer, done.stderr
