"""What the pages show for the demo's data, as it stands there, on a small set of that kind in the same places."""

import json
import shutil
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from bench_runs import trained_here
from conftest import ROOT, list_column, nothing_stays_imported, run_script, write_clone
from doc_pages import Block, read
from documented import NO_GPU
from sklearn.metrics import roc_auc_score

from mm_fibinet.compare.task1 import EXPID

ITEMS = 60
SMALL = ("--set", "epochs=1", "batch_size=256")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder after `make demo`: data/demo, config, and the run of FiBiNET_demo; embeddings are random."""
    folder = tmp_path_factory.mktemp("after_demo")
    write_clone(folder, ITEMS, max_len=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_script("run_expid", "--expid", "FiBiNET_demo", *SMALL)[0] == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """The working folder, as the current one."""
    monkeypatch.chdir(folder)
    return folder


def auc_of(valid_scores):
    """scikit-learn's, of the scores that a run has left."""
    table = pl.read_parquet(valid_scores)
    return roc_auc_score(table["label"], table["score"])


@pytest.mark.documented("docs/training.md", "Training and predicting")
def test_training(documented, here, capsys):
    [done] = documented.run_all("--model_root", "trained", *SMALL[:1], *SMALL[2:], capsys=capsys)
    run = here / "trained" / "MMCTR_demo" / "FiBiNET_demo"
    resolved = json.loads((run / "manifest.json").read_text())["config"]
    assert (resolved["learning_rate"], resolved["epochs"]) == (5e-4, 3)
    assert f"AUC: {auc_of(run / 'valid_scores.parquet'):.6f}"[:10] in done.out


@pytest.mark.documented("docs/training.md", "Prediction")
def test_three_seeds_as_one(documented, here, capsys):
    """The submission is the mean of the three runs' own."""
    *train, average = documented.commands
    assert len(train) == 3
    for command in train:
        assert documented.run(command, *SMALL, capsys=capsys).code == 0
    done = documented.run(average, "--out", "submission/average.csv", capsys=capsys)
    assert done.code == 0, done.err
    alone = []
    for seed in (1, 2, 3):
        arguments = ["--expid", "FiBiNET_demo", "--model_root", f"runs/{seed}", "--out", f"submission/{seed}.csv"]
        assert run_script("prediction", *arguments, capsys=capsys)[0] == 0
        alone.append(pl.read_csv(f"submission/{seed}.csv")["Task1&2"].to_numpy())
    assert len({tuple(scores) for scores in alone}) == 3
    found = pl.read_csv("submission/average.csv")["Task1&2"].to_numpy()
    np.testing.assert_allclose(found, np.mean(alone, axis=0), atol=2e-6)


@pytest.mark.documented("docs/comparing.md", "Comparing", "DIN_demo")
@pytest.mark.documented("docs/comparing.md", "Comparing", "run_param_tuner.py")
def test_comparing(documented, here, capsys):
    """Trainings are in this process, one epoch each, where the command starts one for each."""
    board, tuner = documented.commands
    with trained_here() as trained:
        assert documented.run(board, *SMALL, capsys=capsys).code == 0
        rows = pl.read_csv("leaderboard/leaderboard.csv")
        assert set(rows["expid"]) == {"DIN_demo", "FiBiNET_demo"} and set(rows["runs"]) == {3}
        done = documented.run(tuner, "--tag", "003", *SMALL, capsys=capsys)  # one of the grid's eight
        assert done.code == 0 and len(trained) == 6 + 1, done.err


@pytest.mark.documented("docs/guide.md", "Histories once a user")
def test_check(documented, here, capsys):
    """The page's own entry, on files in the places that it names."""
    mine = here / "data" / "mine"
    shutil.copytree(here / "data" / "demo" / "MMCTR_demo", mine)
    shutil.copy(here / "data" / "demo" / "item_feature.parquet", mine)
    shutil.copy(here / "data" / "demo" / "embedded" / "item_info.parquet", mine)
    blocks = [each for each in read("docs/guide.md") if isinstance(each, Block) and each.heading == "Your own data"]
    [entry] = [block.code for block in blocks if block.language == "yaml"]
    (here / "config" / "dataset_config" / "mine.yaml").write_text(entry)
    for done in documented.run_all("--config", "config", capsys=capsys):
        assert done.out.count("ok") >= 4, done.out
    pq.write_table(pq.read_table(mine / "train.parquet").drop_columns("label"), mine / "train.parquet")
    assert run_script("mm_fibinet.__main__", "check", mine, capsys=capsys)[0] == 2


@pytest.mark.documented("docs/embeddings.md", "Fusion", "data/mine/train.parquet")
@pytest.mark.documented("docs/embeddings.md", "Fusion", "--mix")
def test_fusions(documented, here, tmp_path, monkeypatch, capsys):
    """Of columns of vectors, which need no network; the mix is their sum, worked out with numpy."""
    from test_item_clicks import learn_little

    monkeypatch.chdir(tmp_path)
    rng, clicks = np.random.default_rng(4), tmp_path / "data" / "mine"
    clicks.mkdir(parents=True)
    for split, users in (("train", 0), ("valid", 1000)):  # users of their own: nobody's clicks are in both
        rows = pl.read_parquet(here / "data" / "demo" / "MMCTR_demo" / f"{split}.parquet")
        rows.with_columns(pl.col("user_id") + users).write_parquet(clicks / f"{split}.parquet")
    columns = {"a": 24, "b": 24, "item_emb_d128": 16, "item_emb_d128_v3": 16}
    vectors = {name: rng.normal(size=(ITEMS, width)).astype(np.float32) for name, width in columns.items()}
    items = pl.DataFrame({"item_id": range(1, ITEMS + 1), "item_title": ["x"] * ITEMS}).to_arrow()
    for name, values in vectors.items():
        items = items.append_column(name, list_column(values))
    pq.write_table(items, "item_emb.parquet")
    pl.DataFrame({"item_id": range(ITEMS + 1)}).write_parquet("in.parquet")
    files = ["--item_info", "in.parquet", "--item_feature", "item_emb.parquet", "--images", "item_emb.parquet"]
    files += ["--output", "out.parquet", "--text_encoder", "column:a", "--image_encoder", "column:b"]
    learn_little(monkeypatch, 2000)
    also, contrastive, auto, mix = documented.commands
    for command, told in (
        (also, "item2vec_emb_d16"),
        (contrastive, "contrastive"),
        (auto, "by the AUC of its cosines"),
    ):
        done = documented.run(command, *files, "--emb_dim", 16, instead={"...": None}, capsys=capsys)
        assert done.code == 0 and told in done.out, (done.out, done.err)
    own = {"IN": "in.parquet", "OUT": "mixed.parquet"}
    done = documented.run(mix, "--emb_dim", 16, instead=own, capsys=capsys)
    assert done.code == 0, done.err
    found = np.array(pl.read_parquet("mixed.parquet").sort("item_id")["item_emb_d16"].to_list())[1:]
    np.testing.assert_allclose(found, 0.4 * vectors["item_emb_d128"] + 0.6 * vectors["item_emb_d128_v3"], atol=1e-6)


@pytest.mark.documented("docs/embeddings.md", "Is it any good?")
def test_report(documented, here, capsys):
    [done] = documented.run_all("--config", "config", capsys=capsys)
    assert "item_emb_d128" in done.out and "<html" in (here / "report.html").read_text()[:200]


@pytest.mark.documented("docs/embeddings.md", "As challenge task 1 judges")
def test_task1(documented, here, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        (here / "data" / name).mkdir()
        table = pq.read_table(here / "data" / "demo" / "embedded" / "item_info.parquet")
        other = np.random.default_rng(seed).normal(size=(ITEMS + 1, 128)).astype(np.float32)
        other[0] = 0
        table = table.set_column(table.column_names.index("item_emb_d128"), "item_emb_d128", list_column(other))
        pq.write_table(table, here / "data" / name / "item_info.parquet")
    small = {"epochs": 1, "embedding_dim": 4, "attention_hidden_units": [4], "dnn_hidden_units": [4]}
    organisers = here / "config" / "model_config" / "challenge.yaml"
    experiments = yaml.safe_load(organisers.read_text())
    experiments[EXPID] |= small
    organisers.write_text(yaml.safe_dump(experiments))
    more = ["--config", "config", "--set", "dataset_id=MMCTR_demo", "batch_size=256", "--out", "task1"]
    with trained_here() as trained:
        documented.run_all(*more, capsys=capsys)
    assert len(trained) == 6
    rows = pl.read_csv("task1/leaderboard.csv")
    assert set(rows["expid"]) == {"a/item_info", "b/item_info"} and set(rows["runs"]) == {3}


@pytest.mark.documented("docs/serving.md", "Serving")
@pytest.mark.documented("docs/serving.md", "New items")
def test_serving(documented, here, capsys):
    """The scorer's submission is prediction.py's to the sixth digit, as the page says; new items are scored."""
    export, score, grow = documented.commands
    assert documented.run(export, capsys=capsys).code == 0
    assert documented.run(score, capsys=capsys).code == 0
    assert run_script("prediction", "--expid", "FiBiNET_demo", "--out", "submission/torch.csv", capsys=capsys)[0] == 0
    with zipfile.ZipFile("submission/onnx.zip") as archive:
        scores = pl.read_csv(archive.read("prediction.csv"))["Task1&2"].to_numpy()
    np.testing.assert_allclose(scores, pl.read_csv("submission/torch.csv")["Task1&2"].to_numpy(), atol=2e-6)

    [block] = documented.blocks
    found = documented.execute(block)
    assert found["scores"].shape == (3,) and found["scores"].dtype == np.float32

    embedded = pl.read_parquet("data/demo/embedded/item_info.parquet")
    (here / "grown").mkdir()
    new = embedded[-1:].with_columns(item_id=pl.lit(ITEMS + 1, embedded["item_id"].dtype))
    pl.concat([embedded, new]).write_parquet("grown/item_info.parquet")
    features = pl.read_parquet("data/demo/item_feature.parquet").sort("item_id")
    last = features[-1:].with_columns(item_id=pl.lit(ITEMS + 1, features["item_id"].dtype))
    pl.concat([features, last]).write_parquet("item_feature.parquet")
    done = documented.run(grow, capsys=capsys)
    assert done.code == 0, done.err
    query = {"history_ids": [3, 9], "candidate_ids": [5, ITEMS + 1]}
    old, new = (found["Scorer"](folder).score(**query) for folder in ("served/FiBiNET_demo", "served/FiBiNET_demo_2"))
    assert old[0] == new[0] and old[1] != new[1]  # the first folder does not know that item


@pytest.mark.documented("docs/serving.md", "Over HTTP")
def test_over_http(documented, here, capsys, monkeypatch):
    """The page's request, to the service that the page's command would start; its server is no package of the tests."""
    from fastapi.testclient import TestClient

    started = []
    server = SimpleNamespace(run=lambda app, **how: started.append((app, how)))
    monkeypatch.setitem(sys.modules, "uvicorn", server)
    if not (here / "served").exists():
        assert run_script("export_onnx", "--expid", "FiBiNET_demo", "--out", "served/FiBiNET_demo")[0] == 0
    [serve] = documented.commands
    assert documented.run(serve, capsys=capsys).code == 0
    [(app, how)] = started
    [curl] = [each for each in read("docs/serving.md") if getattr(each, "words", ("",))[0] == "curl"]
    _, _, body, _, header, address = curl.words
    assert address == f"localhost:{how['port']}/score"
    answer = TestClient(app).post("/score", content=body, headers=dict([header.split(": ")]))
    assert answer.status_code == 200 and len(answer.json()["scores"]) == len(json.loads(body)["candidate_ids"])


@pytest.mark.documented("docs/fuxictr-models.md", "Any FuxiCTR model")
def test_a_class_of_ones_own(documented, here, capsys, working_modules):
    [entry] = [each for each in read("docs/fuxictr-models.md") if isinstance(each, Block) and each.language == "yaml"]
    (here / "config" / "model_config" / "own.yaml").write_text(entry.code)
    name, settings = next(iter(yaml.safe_load(entry.code).items()))
    module, class_name = settings["model"].split(":")
    text = (ROOT / "tests" / "user_models.py").read_text()
    working_modules(
        module, text.split("'''")[1].replace("class Mine(", f"class {class_name}(").split("class Broken")[0]
    )
    train, board = documented.commands
    small = ["--config", "config", *SMALL]
    assert documented.run(train, *small, capsys=capsys).code == 0
    with trained_here():
        done = documented.run(board, *small, "--out", "own_board", capsys=capsys)
    assert done.code == 0, done.err
    assert set(pl.read_csv("own_board/leaderboard.csv")["expid"]) == {name, "FiBiNET_demo", "LongCTR_SIM_small"}


@pytest.fixture
def working_modules(here):
    """A function that writes modules of a user into the working folder; nothing of them stays imported."""

    def write(name, text):
        (here / f"{name}.py").write_text(text)
        (here / "helpers.py").write_text("def scale(alpha):\n    return 1.0 * alpha\n")

    with nothing_stays_imported(here):
        yield write


@pytest.mark.documented("data/README.md", "Demo data")
def test_demo_data(documented, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = ["--items", 40, "--users", 30, "--train_rows", 200, "--valid_rows", 100, "--test_rows", 100]
    for command in documented.commands:
        assert documented.run(command, *sizes, capsys=capsys).code == 0
        output = tmp_path / command.words[command.words.index("--output") + 1]
        assert pq.read_metadata(output / "MMCTR_demo" / "train.parquet").num_rows == 200
        assert (output / "item_images").is_dir() == ("--no_images" not in command.words)


@pytest.mark.documented("docs/loader.md", "A faster loader for a published solution")
def test_loader(documented, capsys, monkeypatch):
    """Of FuxiCTR's 2.3.7 the challenge's baseline needs the page's line alone, as it says."""
    [block] = documented.blocks
    before, after = block.code.splitlines()[1::2]
    documented.done(block)
    exec(after)  # of the line before the published repository has the module
    repository = {"REPO": str(ROOT / "tests" / "published")}
    installed, older = documented.commands
    assert documented.run(installed, instead=repository, capsys=capsys).code == 2
    done = documented.run(older, instead=repository, capsys=capsys)
    assert done.code == 2 and after in done.out, done.out
    assert before in (ROOT / "tests" / "published" / "run_expid.py").read_text()


@pytest.mark.documented("docs/recipes.md", "Recipes of public data sets")
def test_recipes(documented, tmp_path, monkeypatch, capsys):
    from test_recipes import rows_of, slow_splits, without_order, write_movielens

    monkeypatch.chdir(tmp_path)
    (tmp_path / "ml-latest-small").mkdir()
    rows = write_movielens(tmp_path / "ml-latest-small")
    documented.run_all(instead=NO_GPU, capsys=capsys)
    assert without_order(rows_of(tmp_path / "data" / "ml")) == without_order(slow_splits(rows))
