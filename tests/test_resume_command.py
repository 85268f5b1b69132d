"""The real command, killed at random moments or asked to stop, ends with the weights of an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, make_dataset

KILLS = int(os.environ.get("MM_FIBINET_TEST_KILLS", "3"))


def command(config, runs, *arguments):
    return [
        sys.executable, str(ROOT / "run_expid.py"), "--config", str(config), "--expid", "FiBiNET_test",
        "--model_root", str(runs), "--checkpoint_every", "3", "--set", "epochs=3", "batch_size=16", *arguments,
    ]  # fmt: skip


def start(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(arguments):
    process = start(arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def weights(runs):
    return torch.load(runs / "TEST_DATA" / "FiBiNET_test.model", weights_only=True)


def final_state(runs):
    return torch.load(runs / "TEST_DATA" / "FiBiNET_test" / "last.ckpt", weights_only=True)["state"]["model"]


def wait_for_checkpoint(process, runs, after):
    """Wait until the run has saved a state later than `after`, or has ended."""
    path = runs / "TEST_DATA" / "FiBiNET_test" / "last.ckpt"
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > after):
        time.sleep(0.002)
    return path.stat().st_mtime_ns if path.exists() else after


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A data set and an uninterrupted run on it: (config, runs)."""
    folder = tmp_path_factory.mktemp("whole")
    config = make_dataset(folder, rows=3000)
    finish(command(config, folder / "runs"))
    return config, folder / "runs"


def assert_same(runs, expected):
    for read in (weights, final_state):
        one, other = read(runs), read(expected)
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


def test_sigkill_at_random_moments(whole, tmp_path):
    config, expected = whole
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    killed, after = 0, 0
    while killed < KILLS:
        process = start(command(config, tmp_path, "--resume"))
        after = wait_for_checkpoint(process, tmp_path, after)
        time.sleep(chance.random() * 0.05)
        assert process.poll() is None, "the run ended before it could be killed: make it longer"
        process.kill()
        process.communicate()
        killed += 1
    finish(command(config, tmp_path, "--resume"))
    assert_same(tmp_path, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_saves_and_says_how_to_go_on(whole, tmp_path, number):
    config, expected = whole
    process = start(command(config, tmp_path))
    wait_for_checkpoint(process, tmp_path, 0)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    finish(command(config, tmp_path, "--resume"))
    assert_same(tmp_path, expected)
