"""A few cases of every target; `make fuzz` runs thousands. MM_FIBINET_FUZZ_CASES sets how many there are in total."""

import json
import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuzz import pool
from fuzz.targets import TARGETS

CASES = int(os.environ.get("MM_FIBINET_FUZZ_CASES", "60"))
SHARES = sum(target.share for target in TARGETS.values())


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    started = pool.Worker(tmp_path_factory.mktemp("fuzz") / "base")
    yield started
    started.close()


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_cases(name, worker):
    target = TARGETS[name]

    @settings(
        max_examples=max(CASES * target.share // SHARES, 1),
        deadline=None,
        derandomize=True,  # the same cases everywhere: who changes something unrelated meets no new fault
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def run(case):
        result = worker.run(name, case)
        assert result.fault is None, f"{result.fault}\n{name}: {case!r}"

    run()


@pytest.mark.documented("CONTRIBUTING.md", "Fuzz")
def test_the_command(documented, worker, tmp_path, monkeypatch, capsys):
    """A case of each target that it names; a case of the file that it writes runs again and comes to the same."""
    ran = []

    class Watched:
        def __init__(self, _):
            pass

        def run(self, name, case):
            ran.append((name, case, worker.run(name, case)))
            return ran[-1][2]

        def close(self):
            pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fuzz.run.Worker", Watched)
    search, repeat = documented.commands
    done = documented.run(search, instead={"1000": "2"}, capsys=capsys)
    assert done.code == 0 and [name for name, *_ in ran] == ["yaml", "set"], done
    assert "seed 7" in done.out and json.loads((tmp_path / "fuzz_faults.json").read_text()) == []

    name, case, result = ran[0]
    entry = {"target": name, "fault": "made up", "case": repr(case)}
    (tmp_path / "fuzz_faults.json").write_text(json.dumps([entry]))
    done = documented.run(repeat, capsys=capsys)
    assert done.code == 0 and repr(case) in done.out and ran[-1][2].codes == result.codes
