"""FuxiCTR's own data sets: prepared ones run as they are and as stock FuxiCTR has it, raw ones are referred."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import list_column, run_script
from fuxictr.features import FeatureMap
from fuxictr.metrics import evaluate_metrics
from fuxictr.pytorch.layers import (
    BilinearInteractionV2,
    FeatureEmbedding,
    FeatureEmbeddingDict,
    LogisticRegression,
    MLP_Block,
    SqueezeExcitation,
)
from fuxictr.pytorch.models import BaseModel
from sklearn.metrics import roc_auc_score

import model_zoo
from mm_fibinet import any_model
from mm_fibinet.data_check import check_dataset
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.fuxictr_data import complete_entry
from mm_fibinet.settings import load_dataset_config, load_params

SPECS = {
    "userid": {"source": "user", "type": "categorical", "padding_idx": 0, "vocab_size": 26},
    "adgroup_id": {"source": "item", "type": "categorical", "padding_idx": 0, "vocab_size": 40},
    "pid": {"source": "context", "type": "categorical", "padding_idx": 0, "vocab_size": 4},
    "item_id": {"source": "item", "type": "categorical", "padding_idx": 0, "vocab_size": 30},
    "price": {"source": "item", "type": "numeric"},
    "clicks": {
        "source": "user", "type": "sequence", "feature_encoder": "layers.MaskedAveragePooling()", "padding_idx": 0,
        "vocab_size": 30, "max_len": 3,
    },
    "session": {"type": "meta"},
}  # fmt: skip


def make_columns(rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Columns of one split, as FuxiCTR leaves them: ids, scaled numbers, clicks that follow from some of them."""
    columns = {
        name: rng.integers(1, spec["vocab_size"], size=rows)
        for name, spec in SPECS.items()
        if spec["type"] == "categorical"
    }
    columns["price"] = rng.normal(size=rows)
    columns["clicks"] = rng.integers(1, 30, size=(rows, 3))
    columns["clicks"][np.arange(3) < rng.integers(0, 3, size=(rows, 1))] = 0
    columns["session"] = np.arange(rows) // 7
    taste = (columns["userid"] % 2 == columns["item_id"] % 2) + columns["price"]
    columns["clk"] = (taste + rng.normal(size=rows) > 0.5).astype(np.float64)
    return columns


@pytest.fixture(scope="module")
def columns() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return {name: make_columns(rows, rng) for name, rows in {"train": 800, "valid": 300, "test": 100}.items()}


@pytest.fixture(scope="module")
def config(columns, tmp_path_factory) -> Path:
    """A config folder with two data sets that FuxiCTR has prepared, of the same values in parquet and in npz."""
    root = tmp_path_factory.mktemp("fuxictr")
    entries = ""
    for dataset_id, data_format in {"tiny_parquet": "parquet", "tiny_npz": "npz"}.items():
        folder = root / "data" / dataset_id
        folder.mkdir(parents=True)
        for name, values in columns.items():
            if data_format == "npz":
                np.savez(folder / f"{name}.npz", **values)
            else:
                table = {key: list_column(value) if value.ndim == 2 else value for key, value in values.items()}
                pq.write_table(pa.table(table), folder / f"{name}.parquet")
        content = {
            "dataset_id": dataset_id,
            "num_fields": 6,
            "total_features": 131,
            "input_length": 9,
            "labels": ["clk"],
            "features": [{name: spec} for name, spec in SPECS.items()],
        }
        (folder / "feature_map.json").write_text(json.dumps(content))
        entries += f"""
{dataset_id}:
    data_root: {root}/data
    data_format: {data_format}
    train_data: {folder}/train.{data_format}
    valid_data: {folder}/valid.{data_format}
    test_data: {folder}/test.{data_format}
"""
    (root / "config").mkdir()
    (root / "config" / "dataset_config.yaml").write_text(entries)
    (root / "config" / "model_config.yaml").write_text(f"""
FiBiNET_tiny:
    model: FiBiNET
    dataset_id: tiny_parquet
    model_root: {root}/checkpoints
    verbose: 0
    loss: binary_crossentropy
    metrics: [AUC, logloss]
    optimizer: adam
    learning_rate: 1.0e-2
    embedding_regularizer: 1.e-6
    batch_size: 128
    embedding_dim: 4
    hidden_units: [16]
    hidden_activations: relu
    bilinear_type: field_interaction
    net_dropout: 0
    epochs: 3
    shuffle: False
    seed: 2019
    monitor: AUC
""")
    return root / "config"


class StockFiBiNET(BaseModel):
    """FiBiNET (Huang et al. 2019) of FuxiCTR's layers, which FuxiCTR's repository has and its wheel has not."""

    def __init__(self, feature_map, embedding_dim, hidden_units, bilinear_type, learning_rate, **kwargs):
        super().__init__(feature_map, **kwargs)
        fields = feature_map.num_fields
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.senet_layer = SqueezeExcitation(fields, 3, "ReLU")
        self.bilinear_interaction1 = BilinearInteractionV2(fields, embedding_dim, bilinear_type)
        self.bilinear_interaction2 = BilinearInteractionV2(fields, embedding_dim, bilinear_type)
        self.lr_layer = LogisticRegression(feature_map, use_bias=False)
        self.dnn = MLP_Block(fields * (fields - 1) * embedding_dim, hidden_units, "ReLU", output_dim=1)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        row = self.get_inputs(inputs)
        fields = self.embedding_layer(row)
        pairs = [self.bilinear_interaction1(fields), self.bilinear_interaction2(self.senet_layer(fields))]
        logit = self.lr_layer(row) + self.dnn(torch.cat(pairs, dim=1).flatten(1))
        return {"y_pred": self.output_activation(logit)}


def stock_batches(values: dict[str, np.ndarray], size: int) -> list[dict[str, torch.Tensor]]:
    """FuxiCTR's dictionaries, made by hand."""
    rows = len(values["clk"])
    return [
        {name: torch.from_numpy(value[start : start + size]) for name, value in values.items()}
        for start in range(0, rows, size)
    ]


@pytest.mark.parametrize("dataset_id", ["tiny_parquet", "tiny_npz"])
def test_fibinet_trains_as_fuxictrs_own(config, columns, dataset_id, tmp_path):
    params = load_params(config, "FiBiNET_tiny", model_zoo, [f"dataset_id={dataset_id}"], model_root=str(tmp_path))
    feature_map = build_feature_map(params)
    theirs_map = FeatureMap(dataset_id, "")
    theirs_map.load(f"{params['data_root']}/{dataset_id}/feature_map.json", params)
    torch.manual_seed(params["seed"])
    stock = StockFiBiNET(theirs_map, **{**params, "model_id": "stock"})
    ours = model_zoo.FiBiNET(feature_map, **params)
    ours.load_state_dict(stock.state_dict())

    batches = {name: stock_batches(values, params["batch_size"]) for name, values in columns.items()}
    Path(stock.checkpoint).parent.mkdir()
    stock.fit(batches["train"], epochs=params["epochs"], validation_data=batches["valid"])
    train = MMCTRDataLoader(feature_map, params["train_data"], **params)
    valid = MMCTRDataLoader(feature_map, params["valid_data"], split="valid", **params)
    ours.fit(train, validation_data=valid, **params)

    truth = columns["valid"]["clk"]
    expected = evaluate_metrics(truth, stock.predict(batches["valid"]), ["AUC", "logloss"])
    assert expected["AUC"] > 0.7  # it has learnt something that could differ
    assert ours.evaluate(valid) == pytest.approx(dict(expected), abs=1e-6)
    for name, values in stock.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values, rtol=0, atol=1e-5)


class Attends(BaseModel):
    """Reads a sequence of FuxiCTR's feature map that has no feature_encoder as its models do: position by position."""

    def __init__(self, feature_map, embedding_dim=4, learning_rate=1e-3, my_sequence_field="clicks", **kwargs):
        super().__init__(feature_map, **kwargs)
        self.sequence = my_sequence_field
        self.embedding_layer = FeatureEmbeddingDict(feature_map, embedding_dim)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        row = self.get_inputs(inputs)
        embedded = self.embedding_layer(row)
        history, target = embedded[self.sequence], embedded["item_id"].unsqueeze(1)
        weights = (history * target).sum(dim=-1).masked_fill(row[self.sequence].long() == 0, -1e9).softmax(dim=-1)
        pooled = (weights.unsqueeze(-1) * history).sum(dim=1)
        return {"y_pred": self.output_activation((pooled * embedded["userid"]).sum(dim=-1, keepdim=True))}


def write_feature_map(config, folder, change, changes) -> dict:
    """A config's settings for a feature map of FuxiCTR's that is another: `change` alters {feature: spec}.

    Args:
        changes: of --set.
    """
    content = json.loads((config.parent / "data" / "tiny_parquet" / "feature_map.json").read_text())
    features = {name: dict(spec) for entry in content["features"] for name, spec in entry.items()}
    content["features"] = [{name: spec} for name, spec in change(features).items()]
    (folder / "tiny_parquet").mkdir()
    (folder / "tiny_parquet" / "feature_map.json").write_text(json.dumps(content))
    params = load_params(config, "FiBiNET_tiny", model_zoo, changes, data_root=str(folder), model_root=str(folder))
    return {
        **params,
        **{
            f"{name}_data": str(config.parent / "data/tiny_parquet" / f"{name}.parquet")
            for name in ("train", "valid", "test")
        },
    }


@pytest.mark.parametrize("said_by", ["feature_map.json", "a setting of the model", "feature_specs"])
def test_a_sequence_without_an_encoder_stays_one(config, columns, tmp_path, said_by):
    """FuxiCTR leaves the key out for `feature_encoder: null`, which its models of sequences need."""

    def without_encoder(features):
        if said_by == "feature_map.json":
            del features["clicks"]["feature_encoder"]
        return features

    changes = ["feature_specs=[{name: clicks, feature_encoder: null}]"] if said_by == "feature_specs" else []
    params = write_feature_map(config, tmp_path, without_encoder, changes)
    feature_map = build_feature_map(params)
    named = {"my_sequence_field": "clicks"} if said_by == "a setting of the model" else {}
    theirs_map = FeatureMap("tiny_parquet", "")
    theirs_map.load(str(tmp_path / "tiny_parquet" / "feature_map.json"), params)
    theirs_map.features["clicks"].pop("feature_encoder", None)
    torch.manual_seed(1)
    stock = Attends(theirs_map, **params)
    ours = any_model.make_model(Attends, feature_map, {**params, **named})
    with torch.no_grad():
        for values in stock.parameters():
            values.normal_()
    ours.load_state_dict(stock.state_dict())
    [batch] = stock_batches(columns["valid"], 300)
    loader = MMCTRDataLoader(feature_map, params["valid_data"], split="valid", batch_size=300, batch_format="flat")
    with torch.no_grad():
        expected, found = stock(batch)["y_pred"], ours(next(iter(loader)))["y_pred"]
    torch.testing.assert_close(found, expected)
    assert expected.std() > 0.1
    model = any_model.make_model(model_zoo.FiBiNET, feature_map, params)  # whose fields are a vector each
    assert model.feature_map.features["clicks"]["feature_encoder"] == "layers.MaskedAveragePooling()"


def test_fields_are_in_the_order_of_use_features_as_fuxictrs_are(config, columns, tmp_path):
    """Weights that FuxiCTR trained mean the same here: behind the fields, layers tell them apart by their places."""
    used = ["clicks", "price", "item_id", "userid"]
    params = load_params(config, "FiBiNET_tiny", model_zoo, [f"use_features={used}"], model_root=str(tmp_path))
    theirs_map = FeatureMap("tiny_parquet", "")
    theirs_map.load(f"{params['data_root']}/tiny_parquet/feature_map.json", params)
    theirs_map.num_fields = len(used)  # load counts them before it leaves some out
    feature_map = build_feature_map(params)
    assert list(feature_map.features) == list(theirs_map.features) == used
    stock = StockFiBiNET(theirs_map, **params).eval()
    ours = model_zoo.FiBiNET(feature_map, **params).eval()
    with torch.no_grad():
        for values in (each for each in stock.parameters() if each.requires_grad):
            values.normal_(std=0.5)
    ours.load_state_dict(stock.state_dict())
    [batch] = stock_batches({name: columns["valid"][name] for name in (*used, "clk")}, 300)
    loader = MMCTRDataLoader(feature_map, params["valid_data"], split="valid", batch_size=300)
    with torch.no_grad():
        expected, found = stock(batch)["y_pred"], ours(next(iter(loader)))["y_pred"]
    torch.testing.assert_close(found, expected)
    assert expected.std() > 0.1


def test_a_shared_table_must_stand_before_in_use_features(config):
    """FuxiCTR would give the other feature a table of its own, which nobody initialises."""
    share = "feature_specs=[{name: clicks, share_embedding: item_id}]"
    params = load_params(config, "FiBiNET_tiny", model_zoo, [share, "use_features=[pid, item_id, clicks]"])
    assert build_feature_map(params).features["clicks"]["share_embedding"] == "item_id"
    with pytest.raises(UserError, match=r"feature clicks: share_embedding is 'item_id', expected .* stands before it"):
        load_params(config, "FiBiNET_tiny", model_zoo, [share, "use_features=[clicks, pid, item_id]"])


def test_an_item_id_needs_no_source(config, columns, tmp_path):
    """FuxiCTR's MovieLens has user_id, item_id and tag_id, and says of none whose it is."""
    params = load_params(config, "FiBiNET_tiny", model_zoo, [], model_root=str(tmp_path))
    entry = {key: params[key] for key in ("dataset_id", "train_data", "valid_data", "test_data")}
    content = json.loads((Path(params["data_root"]) / "tiny_parquet" / "feature_map.json").read_text())
    content["features"] = [{name: {**spec, "source": ""}} for name, spec in SPECS.items()]
    (tmp_path / "tiny_parquet").mkdir()
    (tmp_path / "tiny_parquet" / "feature_map.json").write_text(json.dumps(content))
    feature_map = build_feature_map(complete_entry(entry, "here", str(tmp_path)))
    assert feature_map.features["item_id"] == {**SPECS["item_id"], "source": "item"}
    train = MMCTRDataLoader(feature_map, params["train_data"], batch_size=800)
    assert next(iter(train))["item_id"].tolist() == columns["train"]["item_id"].tolist()


def test_the_commands_take_a_prepared_data_set_as_it_is(config, tmp_path, capsys):
    arguments = ("--config", config, "--expid", "FiBiNET_tiny", "--model_root", tmp_path)
    results = {}
    for dataset_id in ("tiny_parquet", "tiny_npz"):
        code, _, err = run_script("run_expid", *arguments, "--set", f"dataset_id={dataset_id}", capsys=capsys)
        assert (code, err) == (0, "")
        folder = tmp_path / dataset_id / "FiBiNET_tiny"
        results[dataset_id] = json.loads((folder / "result.json").read_text())["metrics"]
        saved = json.loads((folder / "feature_map.json").read_text())["features"]
        assert [name for entry in saved for name in entry] == list(SPECS)
    assert results["tiny_parquet"]["AUC"] == results["tiny_npz"]["AUC"] > 0.7


def test_a_class_of_the_users_own_trains_on_it_and_predicts(config, columns, working_folder, capsys):
    entry = (config / "model_config.yaml").read_text().replace("FiBiNET_tiny", "Mine_tiny")
    lines = [
        line for line in entry.splitlines() if not any(key in line for key in ("bilinear", "hidden_act", "dropout"))
    ]
    own = working_folder / "config"
    own.mkdir()
    (own / "model_config.yaml").write_text("\n".join(lines).replace("model: FiBiNET", "model: my_models:Mine"))
    (own / "dataset_config.yaml").write_text((config / "dataset_config.yaml").read_text())
    command = ("--config", own, "--expid", "Mine_tiny", "--model_root", working_folder / "runs")
    code, _, err = run_script("run_expid", *command, capsys=capsys)
    assert (code, err) == (0, "")
    result = working_folder / "runs" / "tiny_parquet" / "Mine_tiny" / "result.json"
    assert json.loads(result.read_text())["metrics"]["AUC"] > 0.6
    table = pq.read_table(load_dataset_config(config, "tiny_parquet")["test_data"])
    pq.write_table(table.append_column("ID", pa.array(np.arange(table.num_rows))), "test.parquet")
    code, _, err = run_script(
        "prediction", *command[2:], "--test", "test.parquet", "--out", "scores.csv", capsys=capsys
    )
    assert (code, err) == (0, "")
    scores = np.genfromtxt("scores.csv", delimiter=",", skip_header=1)
    assert roc_auc_score(columns["test"]["clk"], scores[:, 1]) > 0.6


def test_prediction_scores_a_test_split_with_row_numbers(config, columns, tmp_path, capsys):
    arguments = ("--config", config, "--expid", "FiBiNET_tiny", "--model_root", tmp_path)
    assert run_script("run_expid", *arguments, "--set", "storage=memmap", capsys=capsys)[0] == 0
    table = pq.read_table(load_dataset_config(config, "tiny_parquet")["test_data"])
    numbered = table.append_column("ID", pa.array(np.arange(table.num_rows)))
    pq.write_table(numbered, tmp_path / "test.parquet")
    command = ("--expid", "FiBiNET_tiny", "--model_root", tmp_path, "--test", tmp_path / "test.parquet")
    code, _, err = run_script("prediction", *command, "--out", tmp_path / "scores.csv", capsys=capsys)
    assert (code, err) == (0, "")
    scores = np.genfromtxt(tmp_path / "scores.csv", delimiter=",", skip_header=1)
    assert roc_auc_score(columns["test"]["clk"], scores[:, 1]) > 0.7
    code, _, err = run_script("prediction", *command[:-2], "--out", tmp_path / "none.csv", capsys=capsys)
    assert (code, "column ID is missing" in err) == (2, True)


def test_a_batch_is_fuxictrs_dictionary(config, columns):
    params = load_params(config, "FiBiNET_tiny", model_zoo)
    feature_map = build_feature_map({**params, "group_id": "session"})
    loader = MMCTRDataLoader(feature_map, params["train_data"], **{**params, "shuffle": True, "batch_size": 300})
    seen = list(loader)
    assert [len(batch["clk"]) for batch in seen] == [300, 300, 200]
    whole = {name: torch.cat([batch[name] for batch in seen]).numpy() for name in columns["train"]}
    back = np.lexsort(columns["train"]["clicks"].T), np.lexsort(whole["clicks"].T)
    for name, values in columns["train"].items():
        order = [np.lexsort((values, columns["train"]["price"])) if values.ndim == 1 else back[0]]
        found = [np.lexsort((whole[name], whole["price"])) if values.ndim == 1 else back[1]]
        np.testing.assert_allclose(whole[name][found[0]], values[order[0]], rtol=1e-6, err_msg=name)


def test_a_batch_has_the_order_and_the_integers_of_fuxictrs(config, columns):
    """Numbers stand among the ids, as in the feature map, and a product of ids is the one of its files' int64."""
    params = load_params(config, "FiBiNET_tiny", model_zoo)
    feature_map = build_feature_map({**params, "group_id": "session"})
    loader = MMCTRDataLoader(feature_map, params["valid_data"], split="valid", batch_size=300, batch_format="flat")
    batch, values = next(iter(loader)), columns["valid"]
    assert list(batch) == [*SPECS, "clk"]
    hashed = (batch["userid"] * 1_000_000_007 + batch["item_id"]) % 1009
    np.testing.assert_array_equal(hashed.numpy(), (values["userid"] * 1_000_000_007 + values["item_id"]) % 1009)
    assert torch.nn.functional.one_hot(batch["pid"], 4).sum() == 300


def test_the_check_takes_what_training_takes(config, columns, tmp_path):
    entry = load_dataset_config(config, "tiny_parquet")
    assert [row.problems for row in check_dataset({**entry, "test_data": None})] == [[]] * 6
    broken = {**columns["valid"], "pid": columns["valid"]["pid"] + 1}
    np.savez(tmp_path / "valid.npz", **broken)
    rows = check_dataset({**entry, "test_data": None, "valid_data": str(tmp_path / "valid.npz")})
    (problem,) = [problem for row in rows for problem in row.problems]
    assert problem.startswith("column pid has 4 in row ")
    assert "expected 0 to 3 (vocab_size 4)" in problem


BUILD = (
    "; build_dataset.py makes the vocabularies and writes it: python build_dataset.py --recipe RECIPE.yaml --out data/"
)


@pytest.mark.parametrize(
    ("dataset_id", "change", "message"),
    [
        ("tiny_parquet", ("data_format: parquet", "data_format: csv"), "data_format is 'csv'"),
        ("tiny_parquet", ("train.parquet", "train.csv"), r"train_data is \S+train.csv"),
        ("tiny_npz", ("train.npz", "train.h5"), r"train_data is \S+train.h5"),
    ],
)
def test_raw_data_are_referred_to_build_dataset(config, tmp_path, dataset_id, change, message):
    text = (config / "dataset_config.yaml").read_text()
    assert change[0] in text
    (tmp_path / "dataset_config.yaml").write_text(text.replace(*change))
    with pytest.raises(UserError, match=f"{dataset_id}: {message}, expected parquet with ids{BUILD}{dataset_id}$"):
        load_dataset_config(tmp_path, dataset_id)


def test_text_where_ids_belong_is_referred_to_build_dataset(config, columns, tmp_path):
    table = pq.read_table(load_dataset_config(config, "tiny_parquet")["train_data"])
    text = pa.array([f"p{value}" for value in columns["train"]["pid"]])
    path = tmp_path / "train.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("pid"), "pid", text), path)
    feature_map = build_feature_map(load_params(config, "FiBiNET_tiny", model_zoo))
    message = (
        f"{path}: column pid has type string, expected an integer a row; build_dataset.py makes ids of text: python"
    )
    with pytest.raises(UserError, match=message):
        MMCTRDataLoader(feature_map, str(path))


def test_without_a_feature_map_features_must_be_named(config, tmp_path):
    text = (config / "dataset_config.yaml").read_text()
    (tmp_path / "dataset_config.yaml").write_text(text.replace("tiny_npz:", "other:"))
    with pytest.raises(
        UserError, match=r"expected a list of features, or FuxiCTR's own in \S+/other/feature_map.json; "
    ):
        load_dataset_config(tmp_path, "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not FuxiCTR's feature map"),
        ('{"dataset_id": "tiny", "labels": ["clk"], "features": [1]}', "not FuxiCTR's feature map"),
        ('{"dataset_id": "other", "labels": ["clk"], "features": []}', "is of data set 'other', expected 'tiny'"),
    ],
)
def test_a_feature_map_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "feature_map.json").write_text(content)
    (tmp_path / "dataset_config.yaml").write_text(f"tiny: {{data_root: {tmp_path}, train_data: a, valid_data: b}}")
    with pytest.raises(UserError, match=message):
        load_dataset_config(tmp_path, "tiny")


def test_a_history_without_items_is_refused(config, tmp_path):
    changes = ["feature_cols=[{name: item_seq, type: meta}, {name: userid, type: categorical}]"]
    with pytest.raises(UserError, match="item_info is not set, expected a path: item_seq is of items"):
        load_params(config, "FiBiNET_tiny", model_zoo, changes, model_root=str(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"clk": np.array([{}, {}])}, "not an npz file of plain arrays"),  # pickled
        ({"clk": np.zeros(3), "userid": np.zeros(4, int)}, r"has clk \[3\], userid \[4\], expected columns"),
        ({"clk": np.zeros((2, 2, 2))}, r"has clk \[2, 2, 2\], expected columns"),
        ({}, "has no arrays, expected columns"),
    ],
)
def test_npz_files_of_other_kinds_are_refused(config, tmp_path, arrays, message):
    np.savez(tmp_path / "train.npz", **arrays)
    params = load_params(config, "FiBiNET_tiny", model_zoo)
    with pytest.raises(UserError, match=message):
        MMCTRDataLoader(build_feature_map(params), str(tmp_path / "train.npz"))
