"""Shared by the tests: golden files, small feature maps and tables."""

import collections
import contextlib
import importlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import user_models
from browsing import browser_of, pages_of
from documented import documented  # noqa: F401  (a fixture)
from fuxictr.features import FeatureMap
from safetensors.torch import load_file

from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.demo.data import generate
from mm_fibinet.errors import run_cli
from mm_fibinet.item_table import ItemTable

torch.set_num_threads(1)  # the tests' tensors are tiny: threads would only wait for each other

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
REAL_DATA = ROOT.parent / "shared" / "data" / "ml100k_mm"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: what they hold, an archive's time say, may differ between workers."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: one that starts last runs on while the other worker has nothing left."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def make_feature_map(features: dict, dataset_id: str = "test", group_id: str | None = "user_id") -> FeatureMap:
    """A FeatureMap of these feature specs, as FuxiCTR's load leaves it."""
    feature_map = FeatureMap(dataset_id, "")
    feature_map.features = {name: dict(spec) for name, spec in features.items()}
    feature_map.labels = ["label"]
    feature_map.group_id = group_id
    feature_map.num_fields = feature_map.get_num_fields()
    return feature_map


class Golden:
    """A published model's weights, inputs and outputs.

    Attributes:
        spec: the JSON beside the tensors.
        weights: the model's state dict.
        batch: the inputs as an IndexBatch.
        expected: float32 [B, 1].
        loss: float32 scalar of these rows, without regularization, where the model has a loss of its own; else None.
    """

    def __init__(self, name: str):
        self.spec = json.loads((GOLDEN / f"{name}.json").read_text())
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.weights = {key[2:]: value for key, value in tensors.items() if key.startswith("w.")}
        self.expected = tensors["y"]
        self.loss = tensors["loss"].squeeze() if "loss" in tensors else None
        table = {key[8:]: value for key, value in tensors.items() if key.startswith("x.table.")}
        num_items = len(table["item_tags"])
        table["item_id"] = torch.arange(num_items)
        item_id = tensors["x.item_id"]
        row = {
            "user_id": tensors["x.user_id"],
            "likes_level": table["likes_level"][item_id],
            "views_level": table["views_level"][item_id],
            "label": tensors.get("x.label", torch.zeros(len(item_id))).view(-1),
        }
        index = torch.cat([tensors["x.item_seq"], item_id.unsqueeze(1)], dim=1)
        self.batch = IndexBatch(row, index.int(), ItemTable(table))

    def feature_map(self) -> FeatureMap:
        """The model's FeatureMap."""
        return make_feature_map(self.spec["features"])

    def dictionary(self) -> dict:
        """The target's features as FuxiCTR passes them."""
        target = self.batch.item_table.rows(self.batch.item_index[:, -1])
        columns = {**target, **self.batch.batch_dict}
        return {name: columns[name] for name in [*self.spec["features"], "label"] if name in columns}


@pytest.fixture
def golden():
    """Golden files by name."""
    return Golden


NUM_ITEMS, NUM_TAGS, EMB_DIM, HISTORY = 40, 9, 16, 12


def make_dataset(folder: Path, rows: int = 600, seed: int = 0) -> Path:
    """A small data set of the contract whose clicks follow the embedding: TEST_DATA/*.parquet and a config folder.

    Returns:
        the config folder; its experiment IDs are FiBiNET_test and FiBiNET_test_no_emb.
    """
    rng = np.random.default_rng(seed)
    data = folder / "TEST_DATA"
    data.mkdir(parents=True)
    embedding = rng.normal(size=(NUM_ITEMS, EMB_DIM)).astype(np.float32)
    embedding[0] = 0
    tags = rng.integers(1, NUM_TAGS, size=(NUM_ITEMS, 5))
    tags[:, :2] = np.where(rng.random((NUM_ITEMS, 1)) < 0.5, 0, tags[:, :2])
    tags[0] = 0
    levels = rng.integers(0, 11, size=(NUM_ITEMS, 2))
    item_info = {
        "item_id": np.arange(NUM_ITEMS),
        "item_tags": list_column(tags),
        "item_emb_d16": list_column(embedding),
    }
    pq.write_table(pa.table(item_info), data / "item_info.parquet")
    item_feature = {
        "item_id": np.arange(1, NUM_ITEMS),
        "item_title": [f"title {i}" for i in range(1, NUM_ITEMS)],
        "item_tags": [["a"]] * (NUM_ITEMS - 1),
        "likes_level": levels[1:, 0],
        "views_level": levels[1:, 1],
    }
    pq.write_table(pa.table(item_feature), folder / "item_feature.parquet")
    for name, count in {"train": rows, "valid": rows // 3, "test": rows // 4}.items():
        history = rng.integers(1, NUM_ITEMS, size=(count, HISTORY))
        history[np.arange(HISTORY) < rng.integers(0, HISTORY + 1, size=(count, 1))] = 0
        item = rng.integers(1, NUM_ITEMS, size=count)
        likes = embedding[history].sum(1) * embedding[item]
        label = (likes.sum(1) + rng.normal(size=count) > 1).astype(np.int64)
        columns = {
            "user_id": rng.integers(0, 50, size=count),
            "item_seq": list_column(history),
            "item_id": item,
            "likes_level": levels[item, 0],
            "views_level": levels[item, 1],
        }
        columns = {"ID": np.arange(count), **columns} if name == "test" else {**columns, "label": label}
        pq.write_table(pa.table(columns), data / f"{name}.parquet")
    return _write_config(folder, data)


def list_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """A fixed-size list column of a matrix [n, width]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _write_config(folder: Path, data: Path) -> Path:
    config = folder / "config"
    config.mkdir()
    (config / "dataset_config.yaml").write_text(f"""
TEST_DATA:
    data_root: {folder}
    data_format: parquet
    train_data: {data}/train.parquet
    valid_data: {data}/valid.parquet
    test_data: {data}/test.parquet
    item_info: {data}/item_info.parquet
    item_feature: {folder}/item_feature.parquet
    feature_cols:
        - {{name: user_id, type: meta}}
        - {{name: item_seq, type: meta}}
        - {{name: [likes_level, views_level], type: categorical, vocab_size: 11}}
        - {{name: item_id, type: categorical, source: item, vocab_size: {NUM_ITEMS}}}
        - {{name: item_tags, type: sequence, source: item, max_len: 5, vocab_size: {NUM_TAGS}}}
        - {{name: item_emb_d16, type: embedding, source: item, pretrain_dim: {EMB_DIM}}}
    label_col: {{name: label, dtype: float}}
""")
    (config / "model_config.yaml").write_text("""
Base:
    verbose: 0
    group_id: user_id
    metrics: [AUC, logloss, gAUC]
    early_stop_patience: 2
    seed: 2025
FiBiNET_test: &test
    model: FiBiNET
    dataset_id: TEST_DATA
    optimizer: adam
    loss: binary_crossentropy
    learning_rate: 5e-3
    embedding_regularizer: 1e-6
    batch_size: 64
    embedding_dim: 8
    hidden_units: [16]
    net_dropout: 0.1
    epochs: 2
    max_len: 10
FiBiNET_test_no_emb:
    <<: *test
    use_features: [user_id, item_seq, likes_level, views_level, item_id, item_tags]
""")
    return config


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """The config folder of a data set that no test may change."""
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def exported(dataset, tmp_path_factory) -> SimpleNamespace:
    """A trained run and its export.

    `config`, `expid` and `root` of the run, `folder` of the export, `test`, the split to score, and `model()`, the
    torch model with its item table.
    """
    root = tmp_path_factory.mktemp("exported")
    expid, run = "FiBiNET_test", ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", root]
    changes = ["model=DeepFM", "history_levels=True", "similarity_fields=True", "epochs=1"]
    assert run_script("run_expid", *run, "--set", *changes)[0] == 0
    assert run_script("export_onnx", *run[2:], "--out", root / "served")[0] == 0
    test = dataset.parent / "TEST_DATA" / "test.parquet"

    def model():
        from mm_fibinet import commands
        from mm_fibinet.commands.predict import Scorer
        from mm_fibinet.commands.train import own_item_table

        home = commands.Home.repository(ROOT)
        args = commands.parse("export", home, [*map(str, run[2:]), "--out", "nowhere"])
        args.config_given, args.config = False, str(home.config)
        scorer = Scorer.of(args, home, -1)
        made, feature_map = scorer.model()
        return made.eval(), own_item_table(scorer.params, made, feature_map)

    return SimpleNamespace(config=dataset, expid=expid, root=root, folder=root / "served", test=test, model=model)


def run_script(script: str, *arguments: object, capsys=None) -> tuple[int, str, str]:
    """Run a top-level script's or a module's main in this process: (exit code, stdout, stderr)."""
    module = importlib.import_module(script)
    before, sys.argv = sys.argv, [f"{script}.py", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stopped:
            run_cli(module.main)
    finally:
        sys.argv = before
        logging.disable(logging.NOTSET)  # a script owns its process and may silence it; here others come after it
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    out = capsys.readouterr() if capsys else None
    return stopped.value.code, out.out if out else "", out.err if out else ""


@pytest.fixture(scope="module")
def browser():
    """Of `browsing.browser_of`."""
    with browser_of() as launched:
        yield launched


@pytest.fixture
def open_page(browser, written):
    """The leaderboard's page that a module has `written`, see `browsing.pages_of`."""
    with pages_of(browser, written["html"]) as open_at:
        yield open_at


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads, and spinning threads are slow on shared cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def working_folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A user's folder with my_models.py (see user_models.py), the current one; nothing of it stays imported."""
    monkeypatch.chdir(tmp_path)
    user_models.write(tmp_path)
    with nothing_stays_imported(tmp_path):
        yield tmp_path


@contextlib.contextmanager
def nothing_stays_imported(folder: Path) -> Iterator[None]:
    """Modules of a folder that are imported within are forgotten, and the search path is as before."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write_clone(folder: Path, items: int, max_len: int) -> None:
    """What a clone has after `make demo`, as far as commands read it: config, and a small data/demo.

    The embedding is random and not that of the content, which takes minutes.
    """
    data = folder / "data" / "demo"
    generate(data, items=items, users=80, train_rows=800, valid_rows=300, test_rows=100, max_len=max_len)
    info = pq.read_table(data / "MMCTR_demo" / "item_info.parquet")
    embedding = np.random.default_rng(0).normal(size=(items + 1, 128)).astype(np.float32)
    embedding[0] = 0
    (data / "embedded").mkdir()
    pq.write_table(info.append_column("item_emb_d128", list_column(embedding)), data / "embedded" / "item_info.parquet")
    shutil.copytree(ROOT / "config", folder / "config")
