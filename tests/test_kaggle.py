"""Attached data and runs are found wherever Kaggle puts them, and what is found is what the commands then read."""

import argparse
import json
import os
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

import model_zoo
from mm_fibinet import files, settings
from mm_fibinet.commands import arguments
from mm_fibinet.errors import UserError
from mm_fibinet.kaggle import EMBEDDED, bring_runs, find_data

FILES = ("train", "valid", "test", "item_info", "item_feature")


def put(path, rows=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"item_id": range(rows), "user_id": range(rows)}), path)
    return path


def put_microlens(folder, splits="MicroLens_1M_x1"):
    """Stand-ins for the five files, in the challenge's layout."""
    for name in FILES[:4]:
        put(folder / splits / f"{name}.parquet")
    put(folder / "item_feature.parquet")
    return folder / splits


def read_by_training(data, expid=None):
    """The files that `train` reads when it is told what `data` says, by the key of the config."""
    parser = argparse.ArgumentParser()
    arguments.train.add(parser, ROOT / "config")
    args = parser.parse_args(["--expid", expid or data.expids[0], *data.train_arguments])
    params = settings.load_params(args.config, args.expid, model_zoo, args.set, args.data_root)
    return {key: Path(params[key]) for key in settings.DATA_FILES if params.get(key)}


@pytest.mark.parametrize(
    "place",
    [
        "www2025-mmctr-data/MicroLens_1M_MMCTR",
        "www2025-mmctr-data",
        "datasets/someone/www2025-mmctr-data/MicroLens_1M_MMCTR",
        "datasets/someone/my-copy/a/b/c",
        "",
    ],
)
def test_the_challenges_layout_at_any_depth(place, tmp_path):
    splits = put_microlens(tmp_path / place)
    data = find_data(tmp_path)
    assert data.expids == ["FiBiNET_MicroLens_1M_x1"] and data.images is None and data.embedded is None
    expected = {f"{name}_data": splits / f"{name}.parquet" for name in FILES[:3]}
    expected |= {"item_info": splits / "item_info.parquet", "item_feature": splits.parent / "item_feature.parquet"}
    assert read_by_training(data) == read_by_training(data, "DIN_MicroLens_1M_x1") == expected


def test_data_root_with_or_without_the_challenges_folder(tmp_path):
    """On the command line, where nothing is searched for."""
    splits = put_microlens(tmp_path / "MicroLens_1M_MMCTR")
    for root in (tmp_path, tmp_path / "MicroLens_1M_MMCTR"):
        params = settings.load_params(str(ROOT / "config"), "DIN_MicroLens_1M_x1", model_zoo, [], str(root))
        assert params["train_data"] == str(splits / "train.parquet")
        assert params["item_feature"] == str(tmp_path / "MicroLens_1M_MMCTR" / "item_feature.parquet")
        assert params["data_root"] == str(tmp_path / "MicroLens_1M_MMCTR")
    nearer = put_microlens(tmp_path)  # what was named goes first
    params = settings.load_params(str(ROOT / "config"), "DIN_MicroLens_1M_x1", model_zoo, [], str(tmp_path))
    assert params["train_data"] == str(nearer / "train.parquet") and params["data_root"] == str(tmp_path)


def test_files_in_other_places_are_named_one_by_one(tmp_path):
    """All five files in a folder of another name, whose name YAML would not take as it stands; a file of part files."""
    folder = tmp_path / "my data: #1"
    for name in FILES[1:]:
        put(folder / f"{name}.parquet")
    put(folder / "train.parquet" / "part-0.parquet")
    data = find_data(tmp_path)
    expected = {f"{name}_data": folder / f"{name}.parquet" for name in FILES[:3]}
    assert read_by_training(data) == expected | {name: folder / f"{name}.parquet" for name in FILES[3:]}


def test_a_file_of_another_data_set_and_the_nearest_of_two(tmp_path):
    splits = put_microlens(tmp_path / "one")
    (tmp_path / "one" / "item_feature.parquet").rename(tmp_path / "one" / "kept.parquet")
    far = put(tmp_path / "two" / "item_feature.parquet")
    assert find_data(tmp_path).item_feature == far
    near = put(tmp_path / "one" / "more" / "item_feature.parquet")
    assert find_data(tmp_path).item_feature == near
    assert find_data(tmp_path).item_info == splits / "item_info.parquet"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["item_images/1.jpg"], "item_images"),
        (["item_images/item_images/1.jpg"], "item_images"),
        (["item_images.rar"], "item_images.rar"),
        (["item_images.zip", "item_images.txt"], "item_images.zip"),
        (["Item_Images.tar.gz"], "Item_Images.tar.gz"),
        (["item_images.rar", "item_images/1.jpg"], "item_images"),
        (["item_images.txt", "more_item_images.zip"], None),
    ],
)
def test_covers_in_a_folder_or_an_archive(there, expected, tmp_path):
    put_microlens(tmp_path)
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    data = find_data(tmp_path)
    assert data.images == (tmp_path / expected if expected else None)
    parser = argparse.ArgumentParser()
    arguments.embed.add(parser, ROOT / "config")
    args = parser.parse_args([*data.embed_arguments, "--output", "x.parquet"])
    assert (args.item_info, args.item_feature) == (str(data.item_info), str(data.item_feature))
    assert (args.images, args.image_encoder == ["none"]) == (str(data.images) if expected else None, not expected)


def test_folders_of_images_and_hidden_ones_are_not_searched_through(tmp_path):
    """The traps are whole data sets, nearer to the top than the real one."""
    splits = put_microlens(tmp_path / "a" / "b" / "c")
    for place in ("item_images", "covers/more", ".cache"):
        put_microlens(tmp_path / place)
    for number in range(1_000):
        (tmp_path / "covers" / f"{number}.JPG").touch()
    assert find_data(tmp_path).train == splits / "train.parquet"
    (tmp_path / "covers" / "0.JPG").unlink()  # fewer than a folder of covers has
    assert find_data(tmp_path).train == tmp_path / "covers" / "more" / "MicroLens_1M_x1" / "train.parquet"


def test_nothing_attached_is_said(tmp_path, capsys):
    put(tmp_path / "titanic" / "train.parquet")
    assert find_data(tmp_path) is None
    said = capsys.readouterr().out
    assert "not found: train.parquet, valid.parquet, test.parquet, item_info.parquet, item_feature.parquet in" in said
    assert f"(2 folders); of these there are only {tmp_path}/titanic/train.parquet" in said
    assert find_data(tmp_path / "none") is None
    assert f"{tmp_path}/none, which is not there" in capsys.readouterr().out
    for split in ("valid", "test"):  # splits of something else
        put(tmp_path / "titanic" / f"{split}.parquet")
    assert find_data(tmp_path) is None


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    def walk(folder, on_error):
        on_error(PermissionError(13, "Permission denied", f"{folder}/secret"))
        yield from real(folder, on_error)

    real = files.walk
    monkeypatch.setattr("mm_fibinet.kaggle.files.walk", walk)
    put_microlens(tmp_path)
    assert find_data(tmp_path) is not None
    assert f"(2 folders), but not in {tmp_path}/secret: Permission denied:" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["item_info", "item_feature"])
def test_a_part_that_is_missing_is_an_error(lost, tmp_path):
    splits = put_microlens(tmp_path)
    (splits if lost == "item_info" else tmp_path).joinpath(f"{lost}.parquet").unlink()
    with pytest.raises(UserError, match=rf"{splits}: the splits are here, but {lost}.parquet is missing: looked in"):
        find_data(tmp_path)


@pytest.mark.parametrize(
    ("places", "taken", "why"),
    [
        (["a/other", "z/MicroLens_1M_x1"], "z/MicroLens_1M_x1", "it is named MicroLens_1M_x1"),
        (["a/MMCTR_demo", "z/MicroLens_1M_x1"], "z/MicroLens_1M_x1", "it is named MicroLens_1M_x1"),
        (["a/other", "z/MMCTR_demo"], "z/MMCTR_demo", "it is named MMCTR_demo"),
        (["a/b/MicroLens_1M_x1", "z/MicroLens_1M_x1"], "z/MicroLens_1M_x1", "its path is the shortest"),
    ],
)
def test_of_two_data_sets_one_is_taken_and_why_is_said(places, taken, why, tmp_path, capsys):
    for place in places:
        put_microlens((tmp_path / place).parent, Path(place).name)
    data = find_data(tmp_path)
    assert data.train.parent == tmp_path / taken
    [other] = [place for place in places if place != taken]
    assert f"{tmp_path / taken} is taken ({why}), not {tmp_path / other}" in capsys.readouterr().out
    assert data.dataset_id == ("MMCTR_demo" if taken.endswith("MMCTR_demo") else "MicroLens_1M_x1")


def test_the_more_complete_of_two_data_sets(tmp_path):
    for place in ("a", "z"):
        put_microlens(tmp_path / place)
    (tmp_path / "a" / "MicroLens_1M_x1" / "item_info.parquet").unlink()
    assert find_data(tmp_path).train.parent == tmp_path / "z" / "MicroLens_1M_x1"


def test_nothing_of_a_generated_set_is_taken_for_the_challenges(tmp_path):
    """An earlier version's output, made without the data, is attached beside them."""
    splits = put_microlens(tmp_path / "data")
    demo = tmp_path / "data" / "earlier" / "demo"
    put_microlens(demo, "MMCTR_demo")
    (demo / "demo.json").touch()
    (demo / "item_images").mkdir()
    data = find_data(tmp_path)
    assert (data.train.parent, data.images) == (splits, None)
    assert find_data(demo.parent).images == demo / "item_images"
    (tmp_path / "data" / "item_feature.parquet").unlink()
    with pytest.raises(UserError, match=r"item_feature.parquet is missing"):
        find_data(tmp_path)


def test_an_embedding_of_task_1_is_trained_on(tmp_path, capsys):
    put_microlens(tmp_path / "in" / "data")
    own, attached = tmp_path / "working" / EMBEDDED, tmp_path / "in" / "notebooks" / "x" / EMBEDDED
    put(attached)
    data = find_data(tmp_path / "in", tmp_path / "working")
    assert data.embedded == attached and data.expids == ["FiBiNET_recommended"]
    assert read_by_training(data)["item_info"] == read_by_training(data, "DIN_MicroLens_1M_x1")["item_info"] == attached
    put(own)
    assert find_data(tmp_path / "in", tmp_path / "working").embedded == own
    put(own, rows=4)  # of other data, the demo's say
    assert find_data(tmp_path / "in", tmp_path / "working").embedded == attached
    assert f"{own}: passed over, it has 4 rows and" in capsys.readouterr().out


def put_run(root, started, mark, expid="FiBiNET_demo"):
    """What a run leaves, in files that may only be read."""
    base = root / "checkpoints" / "MMCTR_demo"
    content = {f"{expid}.model": "weights", f"{expid}.log": "log", f"{expid}/last.ckpt": "state", f"{expid}/.lock": ""}
    content |= {f"{expid}/tensorboard/events": "events", f"{expid}/.last.ckpt.x.part": "half"}
    for name, text in content.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(f"{text} {mark}")
    (base / expid / "manifest.json").write_text(json.dumps({"expid": expid, "started": started, "mark": mark}))
    for path in base.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return base


@pytest.fixture
def attached(tmp_path):
    """Two versions of a notebook's output, the later one deeper; folders may be removed again afterwards."""
    put_run(tmp_path / "in" / "notebooks" / "me" / "train", "2026-01-02T00:00:00", "new")
    put_run(tmp_path / "in" / "old", "2026-01-01T00:00:00", "old")
    (tmp_path / "in" / "old" / "manifest.json").write_text("[1]")
    (tmp_path / "in" / "manifest.json").write_text('{"expid": 1}')
    yield tmp_path / "in"
    for path in [tmp_path / "in", *(tmp_path / "in").rglob("*")]:
        path.chmod(0o755)


def test_the_newest_attached_run_is_copied_and_may_be_written_to(attached, tmp_path, capsys):
    [run] = bring_runs(attached, tmp_path / "checkpoints")
    base = tmp_path / "checkpoints" / "MMCTR_demo"
    assert (run.folder, run.weights) == (base / "FiBiNET_demo", base / "FiBiNET_demo.model")
    assert run.weights.read_text() == "weights new" and (run.folder / "last.ckpt").read_text() == "state new"
    assert (run.events / "events").read_text() == "events new" and run.log.read_text() == "log new"
    assert sorted(os.listdir(run.folder)) == ["last.ckpt", "manifest.json", "tensorboard"]
    assert all(path.stat().st_mode & stat.S_IWUSR for path in base.rglob("*"))
    said = capsys.readouterr().out
    assert f"copied from {attached}/notebooks/me/train/checkpoints/MMCTR_demo/FiBiNET_demo, started 2026-01-02" in said


def test_a_run_that_is_there_is_kept(attached, tmp_path, capsys):
    base = put_run(tmp_path, "2025-01-01T00:00:00", "mine")
    assert bring_runs(attached, tmp_path / "checkpoints") == []
    assert (base / "FiBiNET_demo.model").read_text() == "weights mine"
    assert "is there, nothing is copied over it" in capsys.readouterr().out


def test_a_copy_that_was_cut_short_is_done_again(attached, tmp_path, monkeypatch):
    def full(source, target):
        if Path(source).name == "manifest.json":
            raise OSError(28, "No space left on device")
        Path(target).write_bytes(Path(source).read_bytes())

    with monkeypatch.context() as patched, pytest.raises(UserError, match="the disk is full"):
        patched.setattr("mm_fibinet.kaggle.shutil.copyfile", full)
        bring_runs(attached, tmp_path / "checkpoints")
    assert not list((tmp_path / "checkpoints").rglob("manifest.json"))
    [run] = bring_runs(attached, tmp_path / "checkpoints")
    assert json.loads(run.manifest.read_text())["mark"] == "new"


def test_no_runs_attached(tmp_path, capsys):
    assert bring_runs(tmp_path, tmp_path / "checkpoints") == []
    assert "no earlier runs in" in capsys.readouterr().out and not (tmp_path / "checkpoints").exists()
