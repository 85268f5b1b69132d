"""Progress where it is read: a bar on a terminal, a widget in a notebook, rare plain lines everywhere else."""

import fcntl
import io
import logging
import os
import struct
import subprocess
import sys
import termios

import pytest
from conftest import ROOT

from mm_fibinet import progress
from mm_fibinet.progress import LINE_SECONDS, QUIET_SECONDS, track

WORK = """
import sys, time
from mm_fibinet.progress import track
for _ in track(range(20), "epoch 1", unit="batch", file=sys.stdout, leave=True):
    time.sleep(0.06)
print("done")
"""


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so: clock[0], in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def lines_of(clock, steps, seconds_each, **arguments):
    """The lines of work off a terminal."""
    file = io.StringIO()
    for _ in track(range(steps), "work", unit="step", file=file, **arguments):
        clock[0] += seconds_each
    return file.getvalue().splitlines()


def test_a_line_says_how_far_and_how_long(clock):
    file = io.StringIO()
    with track(desc="epoch 2", total=440, initial=30, unit="batch", file=file) as shown:
        clock[0] += 40
        shown.set_postfix_str("AUC 0.9")
        shown.update(80)
    # 80 batches in 40 s: 2 a second, and 330 to go
    expected = "epoch 2: 25 % (110 of 440), 00:40 so far, 02:45 left, 2.0 batch/s, AUC 0.9\n"
    assert file.getvalue() == expected
    (slow, _) = lines_of(clock, 2, 90)
    assert slow == "work: 50 % (1 of 2), 01:30 so far, 01:30 left, 90.0 s/step"


@pytest.mark.parametrize(
    ("steps", "seconds_each", "expected"),
    [
        (29, 1, []),  # soon done: nothing
        (90, 1, [30, 60, 90]),  # 5 % are 4.5 s: every 30 s
        (3600, 1, list(range(180, 3601, 180))),  # 30 s are less than 5 %: every 5 %
        (10, 360, list(range(1, 11))),
        (40_000, 1, [*range(600, 40_000, 600), 40_000]),  # 5 % are 33 minutes: every 10 minutes
    ],
)
def test_when_a_line_comes(clock, steps, seconds_each, expected):
    lines = lines_of(clock, steps, seconds_each)
    assert [int(line.partition("(")[2].partition(" of")[0].replace(",", "")) for line in lines] == expected


def test_work_that_does_not_move_is_heard_of(clock):
    """Runs take long: what they say meanwhile is shown now and then."""
    file = io.StringIO()
    with track(desc="runs", total=2, unit="run", file=file) as shown:
        for epoch in range(1, 101):
            clock[0] += 31
            shown.set_postfix_str(f"epoch {epoch}")
    assert [line.rsplit("epoch ")[1] for line in file.getvalue().splitlines()] == ["20", "40", "60", "80", "100"]
    assert 19 * 31 < QUIET_SECONDS <= 20 * 31 and LINE_SECONDS < 31


def test_work_of_unknown_length(clock):
    lines = lines_of(clock, 3, 100)
    assert [line.split(",")[0] for line in lines] == [
        "work: 33 % (1 of 3)",
        "work: 66 % (2 of 3)",
        "work: 100 % (3 of 3)",
    ]
    file = io.StringIO()
    for _ in track(iter(range(3)), "work", unit="step", file=file):
        clock[0] += 100
    assert [line.split(",")[0] for line in file.getvalue().splitlines()] == [
        "work: 1 step",
        "work: 2 step",
        "work: 3 step",
    ]


def test_what_is_followed_by_a_summary_has_no_last_line(clock):
    assert lines_of(clock, 2, 29, leave=True) == ["work: 100 % (2 of 2), 00:58 so far, 29.0 s/step"]
    file = io.StringIO()
    with track(desc="work", total=50, unit="step", file=file, leave=False) as shown:
        clock[0] += 40
        shown.update(49)
        clock[0] += 20
        shown.update(1)
    assert len(file.getvalue().splitlines()) == 1


def test_nothing_is_shown_where_nothing_is_wanted(clock, capsys):
    assert lines_of(clock, 100, 60, shown=False) == []
    with track(desc="work", total=1, unit="step", shown=False) as shown:
        shown.write("failed  one")
    assert capsys.readouterr() == ("failed  one\n", "")


def terminal_output(command, columns=80, **environment):
    """What a command writes to a terminal of its own; a text is Python."""
    command = ["-c", command] if isinstance(command, str) else command
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "JPY_PARENT_PID")}
    environment = {**plain, "TERM": "xterm", **environment}
    process = subprocess.Popen([sys.executable, *command], stdout=theirs, stderr=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    read = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the other end is closed
            block = b""
        if not block:
            break
        read += block
    os.close(ours)
    assert process.wait() == 0, read
    return read.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_bar_of_its_width():
    for columns, environment in ((60, {}), (100, {"COLUMNS": "60"}), (0, {"COLUMNS": "60"})):
        shown = terminal_output(WORK, columns, **environment)
        assert "\r" in shown and "20/20" in shown and shown.endswith("done\n")
        assert max(len(part) for part in shown.replace("\n", "\r").split("\r")) == 59
    assert "20/20" in terminal_output(WORK, 0)  # a terminal that does not know its width


def test_no_bar_elsewhere():
    assert terminal_output(WORK, TERM="dumb") == "done\n"
    assert terminal_output(WORK, JPY_PARENT_PID="1") == "done\n"  # !python in a notebook
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_log_lines_stay_above_the_bar():
    code = """
import logging, sys
from mm_fibinet.progress import log_lines_above_bars, track
logging.basicConfig(level=logging.INFO, handlers=[logging.StreamHandler(sys.stdout)], format="%(message)s")
with log_lines_above_bars(sys.stdout):
    for step in track(range(3), "epoch 1", file=sys.stdout, leave=False):
        logging.info("line %d", step)
"""
    shown = terminal_output(code)
    for step in range(3):  # each on a line that was cleared before
        assert any(line.rsplit("\r")[-1] == f"line {step}" for line in shown.splitlines())
    before = logging.getLogger().handlers
    with progress.log_lines_above_bars(io.StringIO()):
        assert logging.getLogger().handlers is before


def train(dataset, tmp_path):
    """run_expid.py with its bars, as arguments of Python."""
    command = ["run_expid.py", "--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path]
    return list(map(str, [*command, "--set", "verbose=1", "epochs=1", "eval_steps=5"]))


def test_a_run_on_a_terminal_has_whole_log_lines_and_a_bar(dataset, tmp_path):
    shown = terminal_output(train(dataset, tmp_path), columns=70, OMP_NUM_THREADS="1")
    assert "\repoch 1:   0%|" in shown and "\rscoring: " in shown
    log = (tmp_path / "TEST_DATA" / "FiBiNET_test.log").read_text().splitlines()
    lines = [line.rsplit("\r")[-1] for line in shown.splitlines()]
    assert len(log) > 10 and [line for line in lines if " INFO " in line] == log


def test_a_run_off_a_terminal_is_plain_text(dataset, tmp_path):
    done = subprocess.run([sys.executable, *train(dataset, tmp_path)], capture_output=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == b""
    log = (tmp_path / "TEST_DATA" / "FiBiNET_test.log").read_bytes()
    assert done.stdout.startswith(log) and b"\r" not in done.stdout and b"\x1b" not in done.stdout
    told = done.stdout[len(log) :].decode().splitlines()
    assert [line.split("  ")[0] for line in told] == ["best weights", "run folder", "results"]


def test_the_demos_data(tmp_path):
    command = ["-m", "mm_fibinet.demo.data", "--size", "tiny", "--output"]
    shown = terminal_output([*command, str(tmp_path / "terminal")])
    assert "\rcovers: 100%|" in shown and "60/60 [" in shown
    piped = subprocess.run([sys.executable, *command, tmp_path / "pipe"], capture_output=True, text=True, cwd=ROOT)
    assert (piped.returncode, piped.stderr, len(piped.stdout.splitlines())) == (0, "", 2)


NOTEBOOK = """
import sys, types, warnings
warnings.simplefilter("error")
class ZMQInteractiveShell: pass
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=ZMQInteractiveShell, version_info=(9,))
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
"""
WIDGETS = """
class Widget(types.SimpleNamespace):
    def __init__(self, children=(), **given):
        super().__init__(children=children, value=0, bar_style="", **given)
        self.layout = self.style = types.SimpleNamespace()
    def close(self): pass
sys.modules["ipywidgets"] = types.SimpleNamespace(HTML=Widget, FloatProgress=Widget, HBox=Widget)
shown = []
sys.modules["IPython.display"] = types.SimpleNamespace(display=shown.append)
"""


def test_a_notebook_gets_tqdms_widget():
    code = "for _ in track(range(7), 'covers', file=sys.stdout): pass\n"
    code += "(container,) = shown; _, bar, _ = container.children; print(bar.max, bar.value, bar.bar_style)"
    code = f"{NOTEBOOK}{WIDGETS}from mm_fibinet.progress import track\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7 7 success\n", "")


def test_a_notebook_without_ipywidgets_gets_lines_and_no_warning():
    hidden = "sys.modules['ipywidgets'] = None\n"
    code = f"{NOTEBOOK}{hidden}from mm_fibinet.progress import track\nprint(type(track(range(7))).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Lines\n", "")
