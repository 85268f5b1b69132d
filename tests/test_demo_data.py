"""The demo data: the file contract, the same bytes twice, and clicks that follow the model it states."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mm_fibinet.demo import data as demo_data
from mm_fibinet.demo.covers import STYLES, draw_cover
from mm_fibinet.demo.data import generate
from mm_fibinet.demo.titles import TOPICS, draw_tags, draw_titles
from mm_fibinet.demo.world import Rows, draw_world, expected_auc
from mm_fibinet.errors import UserError
from mm_fibinet.files import sha256

SMALL = {"items": 80, "users": 400, "train_rows": 6_000, "valid_rows": 1_500, "test_rows": 3_000, "max_len": 24}
REPO = Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Demo:
    """A small set and its tables."""

    folder: Path
    facts: dict

    def table(self, name: str) -> pd.DataFrame:
        inside = ("train", "valid", "test", "item_info")
        return pq.read_table(self.folder / ("MMCTR_demo" if name in inside else "") / f"{name}.parquet").to_pandas()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    return Demo(folder, generate(folder, **SMALL))


def matrix(column: pd.Series) -> np.ndarray:
    return np.stack(column.to_numpy())


def true_probability(demo: Demo, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The stated formula, evaluated from the truth files alone."""
    model = demo.facts["click_model"]
    item = demo.table("item_truth").merge(demo.table("item_feature"), on="item_id").set_index("item_id").loc[items]
    user = demo.table("user_truth").set_index("user_id").loc[users]
    topic = item.topic.map(demo.facts["topics"].index).to_numpy()
    style = item["style"].map(demo.facts["styles"].index).to_numpy()
    rows = np.arange(len(items))
    logit = (
        model["b0"]
        + model["w_topic"] * matrix(user.likes_topic)[rows, topic]
        + model["w_style"] * matrix(user.likes_style)[rows, style]
        + model["w_popularity"] * (item.likes_level + item.views_level - 10).to_numpy() / 10
    )
    return 1 / (1 + np.exp(-logit))


def test_files_have_the_columns_and_types_of_the_challenge(demo: Demo):
    i64, tags = pa.int64(), pa.list_(pa.int64(), 5)
    row = {"user_id": i64, "item_seq": pa.list_(i64, 24), "item_id": i64, "likes_level": i64, "views_level": i64}
    levels = {"likes_level": i64, "views_level": i64}
    expected = {
        "MMCTR_demo/train": (6_000, row | {"label": i64}),
        "MMCTR_demo/valid": (1_500, row | {"label": i64}),
        "MMCTR_demo/test": (3_000, {"ID": i64} | row),
        "MMCTR_demo/item_info": (81, {"item_id": i64, "item_tags": tags}),
        "item_feature": (80, {"item_id": i64, "item_title": pa.string(), "item_tags": pa.list_(pa.string())} | levels),
        "test_labels": (3_000, {"ID": i64, "label": i64, "p_click": pa.float64(), "cold": pa.bool_()}),
    }
    for name, (rows, columns) in expected.items():
        table = pq.read_table(demo.folder / f"{name}.parquet")
        assert {field.name: field.type for field in table.schema} == columns, name
        assert list(table.schema.names) == list(columns), name
        assert table.num_rows == rows, name
        assert all(column.null_count == 0 for column in table.columns), name
    assert demo.facts == json.loads((demo.folder / "demo.json").read_text())
    np.testing.assert_array_equal(demo.table("test").ID, np.arange(3_000))
    np.testing.assert_array_equal(demo.table("test_labels").ID, np.arange(3_000))
    np.testing.assert_array_equal(demo.table("item_feature").item_id, np.arange(1, 81))


def test_histories_and_tags_have_their_zeros_in_front(demo: Demo):
    for split in ("train", "valid", "test"):
        seq = matrix(demo.table(split).item_seq)
        real = seq > 0
        assert not (real[:, :-1] & ~real[:, 1:]).any()
        assert real.sum(axis=1).min() == 6
        assert 0.2 < (real.sum(axis=1) == 24).mean() < 0.9
    info = demo.table("item_info")
    np.testing.assert_array_equal(info.item_id, np.arange(81))
    tags = matrix(info.item_tags)
    assert not tags[0].any()
    assert (tags[1:, -1] > 0).all()
    assert not ((tags[:, :-1] > 0) & (tags[:, 1:] == 0)).any()


def test_tag_ids_and_tag_words_say_the_same(demo: Demo):
    ids = [row[row > 0].tolist() for row in matrix(demo.table("item_info").item_tags)[1:]]
    words = [row.tolist() for row in demo.table("item_feature").item_tags]
    pairs = {pair for some, others in zip(ids, words, strict=True) for pair in zip(some, others, strict=True)}
    assert len({tag for tag, _ in pairs}) == len({word for _, word in pairs}) == len(pairs)
    assert {tag for tag, _ in pairs} == set(range(1, len(pairs) + 1))


def test_rows_carry_the_levels_of_their_item_and_the_history_of_their_user(demo: Demo):
    rows = pd.concat([demo.table(split) for split in ("train", "valid", "test")])
    levels = demo.table("item_feature").set_index("item_id").loc[rows.item_id]
    np.testing.assert_array_equal(rows.likes_level, levels.likes_level)
    np.testing.assert_array_equal(rows.views_level, levels.views_level)
    assert levels.likes_level.between(0, 10).all()
    assert levels.views_level.between(0, 10).all()
    assert rows.user_id.between(1, 400).all()
    assert rows.item_seq.map(tuple).groupby(rows.user_id).nunique().max() == 1
    assert not demo.table("train").user_id.is_monotonic_increasing


def test_the_same_parameters_give_the_same_bytes(tmp_path: Path):
    def hashes(folder: str, **options: int) -> dict[str, str]:
        generate(tmp_path / folder, size="tiny", **options)
        files = (path for path in (tmp_path / folder).rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(tmp_path / folder)): sha256(path) for path in files}

    first, again, other = hashes("first"), hashes("again"), hashes("other", seed=7)
    assert first == again
    assert len(first) == 60 + 9
    assert first.keys() == other.keys()
    assert not {name for name in first if first[name] == other[name]}


def test_a_quarter_of_the_rows_is_clicked(demo: Demo):
    for split in ("train", "valid"):
        assert demo.table(split).label.mean() == pytest.approx(0.25, abs=0.02)
        assert demo.facts["ctr"][split] == pytest.approx(demo.table(split).label.mean())
    assert demo.table("test_labels").label.mean() == pytest.approx(0.25, abs=0.02)


def test_cold_items_occur_nowhere_in_train(demo: Demo):
    train, valid, test = (demo.table(split) for split in ("train", "valid", "test"))
    seen = set(train.item_id)
    for split in (train, valid, test):
        seen |= set(matrix(split.item_seq).ravel())
    cold = {split: set(rows.item_id) - seen for split, rows in (("valid", valid), ("test", test))}
    np.testing.assert_array_equal(demo.table("test_labels").cold, test.item_id.isin(cold["test"]))
    assert cold["valid"]
    assert not cold["valid"] & cold["test"]
    for split, rows in (("valid", valid), ("test", test)):
        fraction = rows.item_id.isin(cold[split]).mean()
        assert 0.15 < fraction < 0.25
        assert demo.facts["cold_fraction"][split] == pytest.approx(fraction)
    truth = demo.table("item_truth")
    assert cold["test"] <= set(truth.item_id[truth.group == "cold_test"])


def test_clicks_follow_the_stated_formula(demo: Demo):
    test, labels = demo.table("test"), demo.table("test_labels")
    expected = true_probability(demo, test.user_id.to_numpy(), test.item_id.to_numpy())
    np.testing.assert_allclose(labels.p_click, expected, rtol=1e-9)
    train = demo.table("train")
    probability = true_probability(demo, train.user_id.to_numpy(), train.item_id.to_numpy())
    for low, high in ((0, 0.02), (0.02, 0.1), (0.1, 0.3), (0.3, 0.9), (0.9, 1)):
        here = (probability > low) & (probability <= high)
        error = np.sqrt((probability * (1 - probability))[here].sum()) / here.sum()
        assert here.sum() > 100
        assert train.label[here].mean() == pytest.approx(probability[here].mean(), abs=4 * error)


def test_the_stored_bayes_auc_is_that_of_the_true_probability(demo: Demo):
    labels = demo.table("test_labels")
    subsets = {"all": labels, "warm": labels[~labels.cold], "cold": labels[labels.cold]}
    for name, rows in subsets.items():
        assert demo.facts["bayes_auc"]["test"][name] == pytest.approx(roc_auc_score(rows.label, rows.p_click))
    assert 0.85 < demo.facts["bayes_auc"]["test"]["all"] < 0.95
    valid = demo.table("valid")
    probability = true_probability(demo, valid.user_id.to_numpy(), valid.item_id.to_numpy())
    assert demo.facts["bayes_auc"]["valid"]["all"] == pytest.approx(roc_auc_score(valid.label, probability), abs=1e-4)


def test_the_expected_bayes_auc_is_the_mean_over_redrawn_labels(demo: Demo):
    probability = demo.table("test_labels").p_click.to_numpy()
    rng = np.random.default_rng(0)
    aucs = [roc_auc_score(rng.random(len(probability)) < probability, probability) for _ in range(100)]
    expected = demo.facts["expected_bayes_auc"]["test"]["all"]
    assert expected == pytest.approx(np.mean(aucs), abs=4 * np.std(aucs) / 10)
    assert expected == pytest.approx(demo.facts["bayes_auc"]["test"]["all"], abs=4 * np.std(aucs))


def test_expected_auc_equals_the_sum_over_all_pairs():
    rng = np.random.default_rng(1)
    score, probability = rng.integers(0, 5, 40) / 4, rng.random(40)
    wins = pairs = 0.0
    for i in range(40):
        for j in range(40):
            if i != j:
                weight = probability[i] * (1 - probability[j])
                pairs += weight
                wins += weight * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    assert expected_auc(score, probability) == pytest.approx(wins / pairs)
    label = (rng.random(40) < 0.3).astype(int)
    assert expected_auc(score, label) == pytest.approx(roc_auc_score(label, score))
    assert expected_auc(score, np.zeros(40)) is None


def test_histories_hold_what_the_user_clicks(demo: Demo):
    """Share of liked topics in the histories = its mean over the exposures that the formula says are clicked."""
    rows = demo.table("train").drop_duplicates("user_id")
    truth, feature = demo.table("item_truth"), demo.table("item_feature")
    warm = truth.item_id[truth.group == "warm"].to_numpy()
    weight = 1 + feature.views_level.to_numpy()[warm - 1]
    probability = true_probability(demo, np.repeat(rows.user_id, len(warm)), np.tile(warm, len(rows)))
    clicked = probability.reshape(len(rows), len(warm)) * weight
    for kind, names in (("topic", demo.facts["topics"]), ("style", demo.facts["styles"])):
        taste = matrix(demo.table("user_truth").set_index("user_id").loc[rows.user_id, f"likes_{kind}"])
        liked = taste[:, truth[kind].map(names.index)]
        expected = (clicked * liked[:, warm - 1]).sum(axis=1) / clicked.sum(axis=1)
        seq = matrix(rows.item_seq)
        found = (np.take_along_axis(liked, seq - 1, axis=1) & (seq > 0)).sum(axis=1) / (seq > 0).sum(axis=1)
        assert found.mean() == pytest.approx(expected.mean(), abs=0.01)
        assert found.mean() > 0.8 > 0.6 > liked.mean()


def test_titles_tell_the_topic_only():
    rng = np.random.default_rng(3)
    topic, style = rng.integers(len(TOPICS), size=1_000), rng.integers(len(STYLES), size=1_000)
    words = TfidfVectorizer().fit_transform(draw_titles(topic, rng))
    for target, least, most in ((topic, 0.9, 1.0), (style, 0.0, 0.27)):
        model = LogisticRegression(C=10).fit(words[:600], target[:600])
        assert least <= model.score(words[600:], target[600:]) <= most


def test_titles_of_the_full_size_are_all_different():
    titles = draw_titles(np.arange(91_717) % len(TOPICS), np.random.default_rng(0))
    assert len(set(titles)) == 91_717
    assert not any("{" in title or "  " in title or title != title.strip() for title in titles)


def test_tags_tell_little_about_the_topic():
    topic = np.random.default_rng(4).integers(len(TOPICS), size=4_000)
    tags = draw_tags(topic, np.random.default_rng(5))
    assert {len(row) for row in tags} == {1, 2, 3, 4, 5}
    words = TfidfVectorizer(analyzer=list).fit_transform(tags)
    score = LogisticRegression().fit(words[:2_000], topic[:2_000]).score(words[2_000:], topic[2_000:])
    assert 1 / len(TOPICS) < score < 0.3


def test_covers_tell_the_style(demo: Demo):
    def features(image: Image.Image) -> np.ndarray:
        return np.asarray(image, dtype=float).mean(axis=(0, 1))

    centers = [np.mean([features(draw_cover(style, 1, item)) for item in range(8)], axis=0) for style in range(6)]
    truth = demo.table("item_truth")
    right = 0
    for item, style in zip(truth.item_id, truth["style"], strict=True):
        image = Image.open(demo.folder / "item_images" / f"{item}.jpg")
        assert (image.format, image.size, image.mode) == ("JPEG", (128, 128), "RGB")
        nearest = np.argmin([np.abs(features(image) - center).sum() for center in centers])
        right += STYLES[nearest] == style
    assert right > 0.9 * len(truth)
    assert len({sha256(path) for path in (demo.folder / "item_images").iterdir()}) == 80


def test_topics_and_styles_are_independent_and_balanced():
    world = draw_world(items=9_600, users=50, seed=0)
    count = np.zeros((len(TOPICS), len(STYLES)))
    np.add.at(count, (world.topic[1:], world.style[1:]), 1)
    assert (count.sum(axis=1) == 1_200).all()
    assert (count.sum(axis=0) == 1_600).all()
    assert ((count - 200) ** 2 / 200).sum() < 80


def test_random_embedding_and_no_images(demo: Demo, tmp_path: Path):
    generate(tmp_path, **SMALL, random_embedding=True, images=False)
    info = pq.read_table(tmp_path / "MMCTR_demo" / "item_info.parquet")
    assert info.schema.field("item_emb_d128").type == pa.list_(pa.float32(), 128)
    embedding = matrix(info.to_pandas().item_emb_d128)
    assert not embedding[0].any()
    assert embedding[1:].std() == pytest.approx(1, abs=0.05)
    assert not (tmp_path / "item_images").exists()
    for split in ("train", "valid", "test"):
        path = f"MMCTR_demo/{split}.parquet"
        assert sha256(tmp_path / path) == sha256(demo.folder / path)


def test_a_set_that_is_there_is_kept_or_refused_or_replaced(tmp_path: Path):
    first = generate(tmp_path, size="tiny")
    (tmp_path / "MMCTR_demo" / "mine.txt").write_text("kept")
    written = (tmp_path / "demo.json").stat().st_mtime_ns
    assert generate(tmp_path, size="tiny") == first
    assert (tmp_path / "demo.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"other parameters \(seed 2025, not 7\): pass --force"):
        generate(tmp_path, size="tiny", seed=7)
    second = generate(tmp_path, size="tiny", seed=7, name="other", images=False, force=True)
    assert second["parameters"]["seed"] == 7
    names = {"other", "MMCTR_demo", "demo.json", "item_feature.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == names | {
        "test_labels.parquet",
        "item_truth.parquet",
        "user_truth.parquet",
        ".lock",
    }
    assert [path.name for path in (tmp_path / "MMCTR_demo").iterdir()] == ["mine.txt"]
    (tmp_path / "item_feature.parquet").unlink()
    with pytest.raises(UserError, match=r"item_feature.parquet is missing: pass --force"):
        generate(tmp_path, size="tiny", seed=7, name="other", images=False)


def test_a_run_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_: object) -> Rows:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="the disk is full"):
        patched.setattr(demo_data, "draw_rows", full_disk)
        generate(tmp_path, size="tiny")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    (tmp_path / ".demo.part" / "MMCTR_demo").mkdir(parents=True)  # as a killed run leaves it
    (tmp_path / ".demo.part" / "MMCTR_demo" / "train.parquet").write_text("half")
    generate(tmp_path, size="tiny")
    assert (tmp_path / "demo.json").exists()
    assert not (tmp_path / ".demo.part").exists()


@pytest.mark.parametrize("place", ["file", "device", "work"])
def test_only_a_demo_folder_is_written_to(tmp_path: Path, place: str):
    work = tmp_path / "work"
    work.mkdir()
    (work / "item_feature.parquet").write_text("mine")
    (tmp_path / "file").write_text("mine")
    output = "/dev/null" if place == "device" else tmp_path / place
    for force in (False, True):
        with pytest.raises(UserError):
            generate(output, size="tiny", images=False, force=force)
    assert (work / "item_feature.parquet").read_text() == "mine" and (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "item_feature.parquet", "work"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 5}, "items is 5, expected a whole number from 40 to 1000000"),
        ({"users": 10**12}, "users is 1000000000000, expected a whole number from 20 to 10000000"),
        ({"max_len": 0}, "max_len is 0, expected a whole number from 1 to 1000"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0 to 4294967295"),
        ({"size": "huge"}, "size is 'huge', expected one of tiny, demo, full"),
        ({"images": "no"}, "images is 'no', expected True or False"),
        ({"name": "../elsewhere"}, "name is '../elsewhere', expected a folder name"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        generate(tmp_path / "new", **{"size": "tiny", **options})
    assert not (tmp_path / "new").exists()


def test_a_damaged_demo_json_is_refused(tmp_path: Path):
    (tmp_path / "demo.json").write_text('{"parameters": {"name": "../.."}}')
    with pytest.raises(UserError, match=r"demo\.json is damaged"):
        generate(tmp_path, size="tiny", force=True)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mm_fibinet.demo.data", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)


def test_command_line(tmp_path: Path):
    done = run("--output", str(tmp_path / "new"), "--size", "tiny", "--users", "50", "--no_images")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "new" / "demo.json").read_text())
    assert facts["parameters"]["users"] == 50
    assert f"best possible test AUC: all {facts['bayes_auc']['test']['all']:.4f}" in done.stdout
    again = run("--output", str(tmp_path / "new"), "--size", "tiny", "--users", "50", "--no_images")
    assert again.returncode == 0
    assert "nothing to do" in again.stdout


def test_command_line_errors_are_one_line(tmp_path: Path):
    (tmp_path / "a_file").write_text("text")
    cases = {
        "has no demo.json": ("--output", str(tmp_path)),
        "is a file, not a folder": ("--output", str(tmp_path / "a_file")),
        "test_rows is 3": ("--output", str(tmp_path / "new"), "--test_rows", "3"),
    }
    for message, arguments in cases.items():
        failed = run(*arguments)
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ")
        assert message in failed.stderr
        assert failed.stderr.count("\n") == 1


def test_a_name_of_one_of_the_sets_own_files_is_refused(tmp_path: Path):
    for name in ("item_images", "demo.json", "item_feature.parquet"):
        with pytest.raises(UserError, match=f"name is '{name}', which is a file or a folder of the set"):
            generate(tmp_path / "demo", name=name, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["mine/train.parquet", "item_images/1.jpg"])
def test_force_replaces_the_demo_set_and_nobody_elses_files(tmp_path: Path, file: str):
    generate(tmp_path, size="tiny", images=False)
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is not of the demo set there, and would be replaced"):
        generate(tmp_path, name="mine", size="tiny", force=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_two_at_once_make_one_set(tmp_path: Path):
    command = [sys.executable, "-m", "mm_fibinet.demo.data", "--size", "tiny", "--output", str(tmp_path / "two")]
    both = [subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.wait(), process.communicate()[1].count("Traceback")) for process in both] == [(0, 0)] * 2
    generate(tmp_path / "one", size="tiny")
    one, two = ({path.name: sha256(path) for path in (tmp_path / which).rglob("*.*g")} for which in ("one", "two"))
    assert one == two and len(one) == 60
    for name in ("item_feature.parquet", "MMCTR_demo/train.parquet", "demo.json"):
        assert sha256(tmp_path / "one" / name) == sha256(tmp_path / "two" / name)


def test_a_folder_whose_name_is_no_text_takes_a_set(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"demo\xff")
    generate(folder, size="tiny", images=False)
    generate(tmp_path / "demo", size="tiny", images=False)
    assert sha256(folder / "MMCTR_demo" / "test.parquet") == sha256(tmp_path / "demo" / "MMCTR_demo" / "test.parquet")
