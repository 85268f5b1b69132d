"""The oracle and the watchdog see each fault that they are there for, and nothing where there is none."""

import os

import pytest

from fuzz import oracle, pool


@pytest.fixture
def place(tmp_path):
    made = oracle.Place(tmp_path / "case")
    (made.given / "data").write_text("x")
    return made


def run(place, what):
    return place.run("fuzz.planted", what, place.folder, results=("*.zip",))


def test_good_endings(place):
    assert run(place, "well").code == 0
    refused = run(place, "refuse")
    assert refused.code == 2 and refused.err.endswith("error: no good\n")
    refused = run(place, "choice")  # argparse's own
    assert refused.code == 2 and "planted.py: error: unrecognized arguments" in refused.err


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("bug", "traceback: KeyError.*label"),
        ("one", "exit code 1"),
        ("quiet", "exit code 2 with 0 error lines"),
        ("chatty", "exit code 2 with 2 error lines"),
        ("all is well with an error", "exit code 0 with an error line"),
        ("input", "an input was changed"),
        ("part", "left a part file behind"),
        ("elsewhere", r"wrote outside of its outputs: \['stray'\]"),
        ("half", r"refused and left \['.zip'\]"),
        ("code", "code in the input was run"),
        ("bar", r"control character '\\r' reached the terminal"),
        ("control", r"control character '\\x1b' reached the terminal"),
    ],
)
def test_each_fault_is_seen(place, what, fault):
    with pytest.raises(oracle.Fault, match=f"fuzz.planted: {fault}"):
        run(place, what)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is watched on Linux only")
def test_the_watchdog(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "SECONDS", 1.0)
    worker = pool.Worker(tmp_path / "base", module="fuzz.planted")
    try:
        assert worker.run("hang", None).fault == "no end within 1 s"
        assert worker.run("die", None).fault == "the process died with code -9"
        monkeypatch.setattr(pool, "SECONDS", 20.0)
        small, large = worker.run("fill_memory", 8), worker.run("fill_memory", 256)
        assert small.fault is None and small.codes == (0,)
        assert 200 < large.peak_mb - small.peak_mb < 300 and large.kept_mb < small.peak_mb + 50
        monkeypatch.setattr(pool, "MEMORY_MB", large.peak_mb - 100)
        assert "at its peak" in worker.run("fill_memory", 256).fault
        assert worker.run("fill_memory", 8).fault is None
    finally:
        worker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["base.log"]


def test_a_worker_that_cannot_start_says_so(tmp_path):
    worker = pool.Worker(tmp_path / "base", module="fuzz.nothing")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the worker did not start: the process died with code 1"):
            worker.run("hang", None)
