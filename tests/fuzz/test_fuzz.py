"""A few cases of every target; `make fuzz` runs thousands. MM_FIBINET_FUZZ_CASES sets how many there are in total."""

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
