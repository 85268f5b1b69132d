"""Several processes that divide the items: in a scheduler's jobs, on several devices, under torchrun, and on Ray."""

import dataclasses
import importlib.util
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from item_files import ITEMS, Hashes, arguments, build, cover, fails, make_data
from test_distributed import free_port
from test_launcher import ended

from mm_fibinet.errors import UserError
from mm_fibinet.items import modalities, on_ray
from mm_fibinet.items.build import build as build_embedding
from mm_fibinet.items.contents import Entry
from mm_fibinet.items.filling import Work
from mm_fibinet.items.modalities import Reading
from mm_fibinet.items.shares import Share


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def quick(monkeypatch):
    """Text and image with an encoder that takes no time, of 20 and 30 numbers, in place of the default ones."""

    def hashing(modality, dim):
        loaders = {modality.default: lambda rest, how: Hashes(modality.name, dim, how.batch_size)}
        return dataclasses.replace(modality, encoders=lambda: loaders)

    text, image = modalities.MODALITIES
    monkeypatch.setattr(modalities, "MODALITIES", (hashing(text, 20), hashing(image, 30)))


@pytest.mark.parametrize(("items", "of"), [(24, 1), (24, 5), (7, 3), (3, 7)])
def test_shares_are_each_item_once_and_of_one_size(items, of):
    entries = [Entry(item, f"item {item}", lambda: b"") for item in range(1, items + 1)]
    shares = [Share(number, of) for number in range(1, of + 1)]
    selected = [[entry.item_id for entry in share.select(entries)] for share in shares]
    assert sorted(item for ids in selected for item in ids) == list(range(1, items + 1))
    assert [len(ids) for ids in selected] == [share.count(items) for share in shares]
    assert max(map(len, selected)) - min(map(len, selected)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "1/4/2", "a/b", "-1/4", "1.0/4", 1, ""])
def test_a_share_that_is_none_says_what_is_expected(text):
    with pytest.raises(UserError, match=f"^--shard {text}: expected I/N with I from 1 to N, such as 1/4"):
        Share.parse(text)


def same_bytes(one: Path, other: Path) -> None:
    assert one.read_bytes() == other.read_bytes()
    assert one.with_suffix(".build.json").read_bytes() == other.with_suffix(".build.json").read_bytes()


def run_shard(data, output, monkeypatch, capsys, **options) -> str:
    """A job's command; it writes no output. Returns what it says."""
    capsys.readouterr()
    with pytest.raises(FileNotFoundError):
        build(data, output, monkeypatch, **options)  # reads the output
    return capsys.readouterr().out


@pytest.mark.parametrize("of", [2, 3])
def test_shards_in_one_store_then_the_build_equal_one_process(data, tmp_path, monkeypatch, capsys, quick, of):
    (data / "images" / "7.jpg").write_bytes(b"<html>")
    build(data, tmp_path / "alone.parquet", monkeypatch, store=tmp_path / "alone")
    said = []
    for number in range(of, 0, -1):
        said.append(
            run_shard(data, tmp_path / "o.parquet", monkeypatch, capsys, shard=f"{number}/{of}", store=tmp_path / "s")
        )
    assert all("output      none, only features in the store; when all shards are done, run the" in out for out in said)
    counts = [list(map(int, re.search(r"text +found (\d+), missing (\d+)", out).groups())) for out in said]
    assert np.sum(counts, axis=0).tolist() == [23, 1] and sum(map(sum, counts)) == ITEMS
    assert sum(int(re.search(r"corrupt (\d+)", out)[1]) for out in said) == 1
    parts = {path.parent.name for path in (tmp_path / "s").rglob("*.h5")}
    assert parts == {f"{number}-of-{of}" for number in range(1, of + 1)}
    again = run_shard(data, tmp_path / "o.parquet", monkeypatch, capsys, shard=f"1/{of}", store=tmp_path / "s")
    assert again.count("encoded 0, reused") == 2
    build(data, tmp_path / "whole.parquet", monkeypatch, store=tmp_path / "s")
    assert capsys.readouterr().out.count("encoded 0, reused") == 2
    same_bytes(tmp_path / "whole.parquet", tmp_path / "alone.parquet")


def test_shards_in_stores_of_their_own_are_read_together(data, tmp_path, monkeypatch, capsys, quick):
    build(data, tmp_path / "alone.parquet", monkeypatch, store=tmp_path / "alone")
    stores = [tmp_path / "a", tmp_path / "b"]
    for number, store in enumerate(stores, start=1):
        run_shard(data, tmp_path / "o.parquet", monkeypatch, capsys, shard=f"{number}/2", store=store)
    before = {path: path.read_bytes() for store in stores for path in store.rglob("*") if path.is_file()}
    build(data, tmp_path / "whole.parquet", monkeypatch, store=[tmp_path / "new", *stores])
    assert capsys.readouterr().out.count("encoded 0, reused") == 2
    same_bytes(tmp_path / "whole.parquet", tmp_path / "alone.parquet")
    (data / "images" / "4.jpg").write_bytes(cover(444))
    build(data, tmp_path / "changed.parquet", monkeypatch, store=[tmp_path / "new", *stores])
    assert "encoded 1, reused 22" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for store in stores for path in store.rglob("*") if path.is_file()}
    message = fails(data, tmp_path / "x.parquet", monkeypatch, capsys, store=[tmp_path / "new", tmp_path / "typo"])
    assert (
        message == f"error: --store {tmp_path / 'typo'}: no such folder; the stores after the first are read, not made"
    )


def test_more_shards_than_contents_and_strict_shards(data, tmp_path, monkeypatch, capsys, quick):
    out = run_shard(data, tmp_path / "o.parquet", monkeypatch, capsys, shard="5/24")
    assert "found 0, missing 1, corrupt 0" in out  # item 5 has no image
    (data / "images" / "7.jpg").write_bytes(b"<html>")
    run_shard(data, tmp_path / "o.parquet", monkeypatch, capsys, shard="1/2", strict=None)
    message = fails(data, tmp_path / "o.parquet", monkeypatch, capsys, shard="1/2", strict=True)
    assert "found 1 bad image files, expected none with --strict: 7.jpg corrupt" in message
    run_shard(data, tmp_path / "o.parquet", monkeypatch, capsys, shard="2/2", strict=True)


def test_ways_to_divide_the_items_exclude_each_other(data, tmp_path, quick):
    options = {"item_feature": data / "item_feature.parquet", "image_encoder": "none", "emb_dim": 8}
    for changes, expected in (
        ({"engine": "spark"}, "--engine spark: unknown, expected local or ray"),
        ({"engine": "ray", "shard": "1/2"}, "--shard and --engine ray: both divide the items"),
        ({"shard": "3/2"}, "--shard 3/2: expected I/N"),
    ):
        with pytest.raises(UserError, match=expected):
            build_embedding(data / "item_info.parquet", tmp_path / "o.parquet", **options, **changes)


def test_without_ray_the_engine_says_what_to_do(data, tmp_path, monkeypatch, capsys, quick):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = fails(data, tmp_path / "o.parquet", monkeypatch, capsys, engine="ray")
    assert "--engine ray: Ray is not installed" in message and message.endswith("or divide the items with --shard")


class SmallCluster:
    """What `_fill` asks of Ray, of machines with one core and no GPU."""

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda", "has 1 GPU for a worker; choose --device cpu"), ("cpu", "has 2 CPUs for a worker; set OMP_NUM_THREADS")],
)
def test_a_cluster_without_room_for_a_worker_is_refused(monkeypatch, device, expected):
    """Ray itself would wait for ever."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(UserError, match=f"^--engine ray: no machine of the cluster {expected}"):
        on_ray._fill(SmallCluster(), None, torch.device(device))


class KillingCluster(SmallCluster):
    """One on which whatever runs is killed, however often it is tried.

    Args:
        ending: the name of what Ray raises then.
    """

    endings = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")
    exceptions = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in endings})

    def __init__(self, ending: str):
        self.ending = getattr(self.exceptions, ending)
        self.cancelled = []

    def remote(self, **needs):
        assert needs == {"num_cpus": 1, "max_retries": 3, "max_calls": 1}
        return lambda task: SimpleNamespace(remote=lambda work, threads, share: share.part)

    def wait(self, tasks, timeout):
        return tasks[:1], tasks[1:]

    def get(self, tasks):
        raise self.ending

    def cancel(self, task, force):
        self.cancelled.append(task)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("WorkerCrashedError", r"a worker was ended from outside 4 times \(out of memory\?\); run the same command"),
        ("NodeDiedError", r"a worker was ended from outside 4 times \(out of memory\?\); run the same command"),
        ("OutOfMemoryError", "Ray ended a worker because a machine's memory was nearly full; let there be fewer"),
    ],
)
def test_workers_that_are_killed_again_and_again_are_a_mistake_of_the_machine(tmp_path, monkeypatch, ending, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    cluster = KillingCluster(ending)
    work = Work([], Reading(24, None, 10), [], [tmp_path], "cpu", None, "auto", 0, False)
    with pytest.raises(UserError, match=f"^--engine ray: {expected}"):
        on_ray._fill(cluster, work, torch.device("cpu"))
    assert cluster.cancelled == [], "to cancel what has ended can end this process"


class LocalCluster(KillingCluster):
    """One of two cores that runs a task where it is handed over; what it gives back comes as from another process."""

    def __init__(self):
        super().__init__("NodeDiedError")

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, **needs):
        return lambda task: SimpleNamespace(remote=lambda *given: pickle.dumps(task(*given)))

    def get(self, tasks):
        return [pickle.loads(task) for task in tasks]


def test_a_mistake_that_a_task_finds_is_told_as_it_is(data, tmp_path, monkeypatch, capsys, quick):
    """After the other tasks are done, whose features are kept."""
    monkeypatch.setitem(sys.modules, "ray", LocalCluster())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(on_ray, "keep_freed_memory", lambda: None)
    build(data, tmp_path / "alone.parquet", monkeypatch, store=tmp_path / "alone")
    picture = (data / "images" / "1.jpg").read_bytes()
    (data / "images" / "1.jpg").write_bytes(b"<html>")
    options = {"engine": "ray", "store": tmp_path / "store"}
    message = fails(data, tmp_path / "out.parquet", monkeypatch, capsys, strict=True, **options)
    assert "images: found 1 bad image files, expected none with --strict: 1.jpg corrupt (not an image)" in message
    (data / "images" / "1.jpg").write_bytes(picture)
    build(data, tmp_path / "out.parquet", monkeypatch, strict=True, **options)
    said = re.findall(r"encoded (\d+), reused (\d+)", capsys.readouterr().out)
    assert [sum(map(int, pair)) for pair in said] == [23, 23] and int(said[1][0]) < 23, said
    same_bytes(tmp_path / "out.parquet", tmp_path / "alone.parquet")


def test_of_an_interrupted_run_the_shares_at_work_are_cancelled(tmp_path, monkeypatch):
    """And none of those that were done meanwhile."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    cluster, calls = KillingCluster("NodeDiedError"), []

    def wait(tasks, timeout, num_returns=1):
        calls.append(tasks)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)  # raises nothing here
            return [], tasks
        assert num_returns == len(tasks) if timeout == 0 else timeout < 1
        return tasks[:1], tasks[1:]

    monkeypatch.setattr(cluster, "wait", wait)
    monkeypatch.setattr(cluster, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 3.0}}])
    work = Work([], Reading(24, None, 10), [], [tmp_path], "cpu", None, "auto", 0, False)
    with pytest.raises(KeyboardInterrupt):
        on_ray._fill(cluster, work, torch.device("cpu"))
    assert calls[0] == ["1-of-3", "2-of-3", "3-of-3"] and cluster.cancelled == ["3-of-3"]


def as_started(data: Path, output: Path, *before: str, **options) -> dict:
    """The real command with the default image encoder, one thread a process: the bits depend on their number."""
    images = {"text_encoder": "none", "item_feature": None}
    line = [sys.executable, *before, str(ROOT / "build_item_emb.py"), *arguments(data, output, **images, **options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return {"args": line, "text": True, "env": environment, "cwd": output.parent}


def command(data: Path, output: Path, *before: str, **options) -> subprocess.CompletedProcess:
    """The real command, to its end."""
    return subprocess.run(**as_started(data, output, *before, **options), capture_output=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(data, the output of one process)."""
    folder = tmp_path_factory.mktemp("alone")
    data = make_data(folder / "data")
    done = command(data, folder / "out.parquet")
    assert done.returncode == 0, done.stderr
    return data, folder / "out.parquet"


@pytest.mark.slow
def test_two_devices_are_two_processes_with_the_same_bytes(alone, tmp_path):
    data, expected = alone
    done = command(data, tmp_path / "out.parquet", device=["cpu", "cpu"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("items       24") == 1, "one process speaks"
    assert "encoded 23, reused 0 from the store" in done.stdout
    assert len(list(tmp_path.glob(".mm_fibinet_features/*/?-of-2/*.h5"))) == 2
    same_bytes(tmp_path / "out.parquet", expected)
    done = command(data, tmp_path / "x.parquet", device=["cpu", "cpu"], image_encoder="vgg")
    assert done.returncode == 2 and done.stderr.startswith("error: --image_encoder vgg")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_torchrun_gives_the_same_bytes_and_a_mistake_is_said_once(alone, tmp_path):
    data, expected = alone
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}")
    done = command(data, tmp_path / "out.parquet", *torchrun)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("items       24") == 1 and "encoded 23, reused 0 from the store" in done.stdout
    same_bytes(tmp_path / "out.parquet", expected)
    done = command(data, tmp_path / "x.parquet", *torchrun, shard="1/2")
    assert done.returncode != 0
    said = re.findall("^error: .*", done.stderr, re.M)  # torchrun's own summary, which repeats it, is indented
    assert said == ["error: --shard and --engine divide the items, as several processes do already; drop them"]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
def test_ray_gives_the_same_bytes_and_goes_on_where_it_was(alone, tmp_path):
    data, expected = alone
    part = command(data, tmp_path / "out.parquet", shard="1/2")
    assert part.returncode == 0, part.stderr
    done = command(data, tmp_path / "out.parquet", engine="ray")
    assert done.returncode == 0, done.stderr
    assert re.search(r"encoded (\d+), reused (\d+)", done.stdout).groups() == ("12", "11")
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr
    same_bytes(tmp_path / "out.parquet", expected)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
def test_ctrl_c_on_ray_is_one_line_and_leaves_nothing_torn(tmp_path):
    """When one share is done and another is at work: the one of bad files, unless the machine starts that very late."""
    data = make_data(tmp_path / "data", 1600)
    for item in range(7, 1600, 2):
        (data / "images" / f"{item}.jpg").write_bytes(b"<html>")
    for store in (tmp_path / f"store{attempt}" for attempt in range(3)):
        process = subprocess.Popen(
            **as_started(data, tmp_path / "out.parquet", engine="ray", store=store),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        until = time.monotonic() + 300
        while not list(store.glob("*/*-of-*/*.h5")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        at_work = process.poll() is None and not (tmp_path / "out.parquet").exists()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the foreground
        code, out, err = ended(process)
        if at_work:  # else a busy machine has done all before this process looked
            break
        (tmp_path / "out.parquet").unlink()
    assert (code, out, err.partition(":")[0], err.count("\n")) == (130, "", "interrupted", 1), err
    assert not (tmp_path / "out.parquet").exists() and not list(tmp_path.glob("store*/**/.*.part"))
