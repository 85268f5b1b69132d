"""Numeric features are scaled as scikit-learn scales them, by the training split's numbers, which a run keeps."""

import json

import data_faults
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_dataset, run_script
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import model_zoo
from mm_fibinet import normalizer
from mm_fibinet.data_check import check_dataset
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map, load_feature_map, require_sound, save_feature_map
from mm_fibinet.settings import load_params

SCALERS = {"StandardScaler": StandardScaler, "MinMaxScaler": MinMaxScaler}


class NumericData:
    """A data set with numeric columns: `hour` and `watched` of the row, `price` and `age` of the item."""

    def __init__(self, folder):
        self.config = make_dataset(folder)
        self.data = folder / "TEST_DATA"
        rng = np.random.default_rng(3)
        for name in ("train", "valid", "test"):
            rows = pq.read_metadata(self.data / f"{name}.parquet").num_rows
            self.append(name, "hour", rng.integers(0, 25, size=rows))
            self.append(name, "watched", rng.lognormal(mean=3, sigma=2, size=rows))
        self.append("item_info", "price", rng.normal(50, 9, size=40).astype(np.float32))
        table = pq.read_table(folder / "item_feature.parquet").take(rng.permutation(39)[:30])
        pq.write_table(
            table.append_column("age", pa.array(rng.integers(1, 90, size=30))), folder / "item_feature.parquet"
        )
        self.params = load_params(str(self.config), "FiBiNET_test", model_zoo)

    def append(self, name, column, values):
        """Add a column to a file, or replace it."""
        path = self.data / f"{name}.parquet"
        table = pq.read_table(path)
        table = table.drop_columns(column) if column in table.column_names else table
        pq.write_table(table.append_column(column, pa.array(values)), path)

    def values(self, name, column):
        """A column of the file as it is."""
        return data_faults.column(self.data / f"{name}.parquet", column)

    def with_columns(self, *columns):
        """The experiment's settings with further lines of feature_cols."""
        return {**self.params, "feature_cols": [*self.params["feature_cols"], *columns]}

    def batch(self, feature_map, split):
        """All rows of a split as one batch's triple."""
        options = {"item_info": self.params["item_info"], "item_feature": self.params["item_feature"]}
        path = self.data / f"{split}.parquet"
        return next(iter(MMCTRDataLoader(feature_map, path, split=split, batch_size=10**6, **options)))


@pytest.fixture
def numeric(tmp_path):
    return NumericData(tmp_path)


@pytest.mark.parametrize("name", [None, "StandardScaler", "MinMaxScaler"])
def test_row_features_are_scaled_as_scikit_learn_does(numeric, name):
    asked = {} if name is None else {"normalizer": name}
    params = numeric.with_columns({"name": ["hour", "watched"], "type": "numeric", **asked})
    feature_map = build_feature_map(params)
    for split in ("train", "valid", "test"):
        batch_dict, _, _ = numeric.batch(feature_map, split)
        for column in ("hour", "watched"):
            scaler = SCALERS[name or "StandardScaler"]().fit(numeric.values("train", column).reshape(-1, 1))
            expected = scaler.transform(numeric.values(split, column).reshape(-1, 1)).ravel()
            assert batch_dict[column].dtype.is_floating_point
            np.testing.assert_allclose(batch_dict[column], expected, rtol=1e-6, atol=1e-6)
    assert feature_map.features["hour"]["normalizer"] == (name or "StandardScaler")


def test_the_fit_does_not_depend_on_the_slices():
    values = np.random.default_rng(0).normal(1e6, 1e-3, size=10_000)
    whole = normalizer.fit([values], normalizer.STANDARD)
    parts = normalizer.fit(np.split(values, [1, 2, 700, 700, 9_000]), normalizer.STANDARD)
    assert whole == pytest.approx(parts, rel=1e-9)
    assert whole["scale"] == pytest.approx(np.std(values), rel=1e-9)


def test_item_features_are_fitted_to_the_items_and_padding_stays_zero(numeric):
    columns = [{"name": name, "type": "numeric", "source": "item"} for name in ("price", "age")]
    feature_map = build_feature_map(numeric.with_columns(*columns))
    _, items, _ = numeric.batch(feature_map, "train")
    ids = items["item_id"].numpy()
    assert (ids == 0).any()

    price = numeric.values("item_info", "price").astype(np.float64)
    expected = StandardScaler().fit(price[1:].reshape(-1, 1)).transform(price.reshape(-1, 1)).ravel()
    expected[0] = 0
    np.testing.assert_allclose(items["price"], expected[ids], rtol=1e-5)

    table = pq.read_table(numeric.data.parent / "item_feature.parquet")
    ages = table["age"].to_numpy().astype(np.float64)
    expected = np.zeros(40)  # items that item_feature lacks are average ones
    expected[table["item_id"].to_numpy()] = (ages - ages.mean()) / ages.std()
    np.testing.assert_allclose(items["age"], expected[ids], rtol=1e-5)


def test_none_leaves_the_numbers(numeric):
    for value in (None, "none"):
        feature_map = build_feature_map(numeric.with_columns({"name": "hour", "type": "numeric", "normalizer": value}))
        assert feature_map.features["hour"] == {"type": "numeric", "source": ""}
        batch_dict, _, _ = numeric.batch(feature_map, "valid")
        assert np.array_equal(batch_dict["hour"], numeric.values("valid", "hour"))


def test_a_constant_becomes_zero(numeric):
    numeric.append("train", "hour", np.full(600, 0.1))
    numeric.append("valid", "hour", np.full(200, 0.1))
    for name in SCALERS:
        line = {"name": "hour", "type": "numeric", "normalizer": name}
        batch_dict, _, _ = numeric.batch(build_feature_map(numeric.with_columns(line)), "valid")
        assert not batch_dict["hour"].any()


@pytest.mark.parametrize("hole", [None, np.nan])
def test_holes_are_refused_unless_they_are_filled(numeric, hole):
    hours = numeric.values("train", "hour").astype(float)
    numeric.append("train", "hour", [hole if row in (4, 5) else value for row, value in enumerate(hours)])
    line = {"name": "hour", "type": "numeric"}
    found = "is empty (null)" if hole is None else "has NaN or infinity"
    with pytest.raises(UserError) as refused:
        build_feature_map(numeric.with_columns(line))
    assert f"train.parquet: column hour {found} in row 4, expected" in str(refused.value)
    problems = [problem for row in check_dataset(numeric.with_columns(line)) for problem in row.problems]
    assert any(problem.split(" (and ")[0] in str(refused.value) for problem in problems)

    hours[[4, 5]] = 7
    scaler = StandardScaler().fit(hours.reshape(-1, 1))
    params = numeric.with_columns({**line, "fill_na": 7})
    batch_dict, _, _ = numeric.batch(build_feature_map(params), "train")
    np.testing.assert_allclose(batch_dict["hour"], scaler.transform(hours.reshape(-1, 1)).ravel(), rtol=1e-5)
    assert not [problem for row in check_dataset(params) for problem in row.problems]


def test_ids_are_filled(numeric):
    levels = numeric.values("train", "likes_level")
    numeric.append("train", "likes_level", [None if row == 3 else int(level) for row, level in enumerate(levels)])
    with pytest.raises(UserError, match=r"column likes_level is empty \(null\) in row 3"):
        numeric.batch(build_feature_map(numeric.params), "train")
    specs = {"feature_specs": [{"name": "likes_level", "fill_na": 5}]}
    batch_dict, _, _ = numeric.batch(build_feature_map({**numeric.params, **specs}), "train")
    levels[3] = 5
    assert np.array_equal(batch_dict["likes_level"], levels)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"name": "hour", "type": "numeric", "normalizer": "Robust"},
            "normalizer is 'Robust', expected StandardScaler",
        ),
        ({"name": "hour", "type": "categorical", "normalizer": "MinMaxScaler"}, "normalizer is for type numeric"),
        ({"name": "hour", "type": "numeric", "fill_na": "x"}, "fill_na is 'x', expected a number"),
        (
            {"name": "hour", "type": "categorical", "vocab_size": 25, "fill_na": 25},
            "fill_na is 25, expected a number",
        ),
        ({"name": "item_seq2", "type": "sequence", "fill_na": 0}, r"fill_na is 0, expected a number \(type numeric\)"),
        ({"name": "item_seq", "type": "numeric"}, "column item_seq has type .*list.*, expected a number a row"),
        ({"name": "huge", "type": "numeric"}, "huge: scale is (inf|nan), expected a number above 0"),
    ],
)
def test_lines_that_are_refused(numeric, line, message):
    numeric.append("train", "huge", np.array([-1e308, 1.0, 1e308] * 200))
    columns = [column for column in numeric.params["feature_cols"] if column["name"] != line["name"]]
    with pytest.raises(UserError, match=message), np.errstate(all="ignore"):
        build_feature_map({**numeric.params, "feature_cols": [*columns, line]})


def test_a_run_keeps_its_scale(numeric, tmp_path):
    params = numeric.with_columns({"name": "hour", "type": "numeric"})
    feature_map = build_feature_map(params)
    save_feature_map(feature_map, tmp_path / "feature_map.json")
    expected, _, _ = numeric.batch(feature_map, "test")
    (numeric.data / "train.parquet").unlink()
    loaded = load_feature_map(tmp_path / "feature_map.json", params)
    batch_dict, _, _ = numeric.batch(loaded, "test")
    assert np.array_equal(batch_dict["hour"], expected["hour"])
    for name in ("features", "labels", "group_id", "num_fields", "total_features", "column_index", "default_emb_dim"):
        assert getattr(loaded, name) == getattr(feature_map, name), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content | {"dataset_id": "OTHER"}, "is of data set OTHER, expected TEST_DATA"),
        (lambda content: content | {"features": 3}, "not a feature map"),
        (lambda content: {}, "not a feature map"),
        (
            lambda content: content | {"features": [{"a": {"type": "code"}}]},
            "feature a: type is 'code', expected one of",
        ),
        (
            lambda content: (
                content
                | {
                    "features": [
                        {"a": {"type": "sequence", "vocab_size": 3, "max_len": 2, "feature_encoder": "print(1)"}}
                    ]
                }
            ),
            "feature a: feature_encoder is 'print(1)', expected layers.MaskedAveragePooling()",
        ),
        (
            lambda content: content | {"features": [{"a": {"type": "meta", "pretrained_emb": "/etc/passwd"}}]},
            "feature a: pretrained_emb is unknown",
        ),
        (
            lambda content: content | {"features": [{"a": {"type": "numeric", "shift": 0, "scale": float("nan")}}]},
            "feature a: scale is nan, expected a number above 0",
        ),
    ],
)
def test_feature_maps_that_are_not_ours_are_refused(numeric, tmp_path, change, message):
    path = tmp_path / "feature_map.json"
    save_feature_map(build_feature_map(numeric.params), path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError) as refused:
        load_feature_map(path, numeric.params)
    assert message in str(refused.value)


def test_damaged_feature_maps_are_refused(numeric, tmp_path):
    path = tmp_path / "feature_map.json"
    with pytest.raises(UserError, match="cannot read"):
        load_feature_map(path, numeric.params)
    path.write_bytes(b'{"features": [\xff')
    with pytest.raises(UserError, match="not a feature map"):
        load_feature_map(path, numeric.params)


def test_an_hour_of_the_day_does_not_drown_the_rest(tmp_path, capsys):
    """Raw, 0..24 beside embeddings of size 0.01, such a column makes logloss worse than its absence."""
    losses = {}
    for name in ("StandardScaler", "none"):
        folder = tmp_path / name
        folder.mkdir()
        config = make_dataset(folder, rows=2400)
        rng = np.random.default_rng(1)
        for split in ("train", "valid", "test"):
            path = folder / "TEST_DATA" / f"{split}.parquet"
            table = pq.read_table(path)
            pq.write_table(table.append_column("hour", pa.array(rng.integers(0, 25, table.num_rows))), path)
        text = (config / "dataset_config.yaml").read_text()
        line = f"        - {{name: hour, type: numeric, normalizer: {name}}}\n    label_col"
        (config / "dataset_config.yaml").write_text(text.replace("    label_col", line))
        code, _, err = run_script(
            "run_expid", "--config", config, "--expid", "FiBiNET_test", "--model_root", folder, capsys=capsys
        )
        assert (code, err) == (0, "")
        result = json.loads((folder / "TEST_DATA" / "FiBiNET_test" / "result.json").read_text())
        losses[name] = result["metrics"]["logloss"]
    share = data_faults.column(tmp_path / "none" / "TEST_DATA" / "valid.parquet", "label").mean()
    constant = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert losses["StandardScaler"] < constant - 0.1
    assert losses["StandardScaler"] < losses["none"] - 0.05


@pytest.mark.parametrize("number", [10**400, float("nan"), float("-inf"), True])
def test_a_number_that_no_float_holds_is_refused(number):
    with pytest.raises(UserError, match=r"feature age: fill_na is .*expected a number"):
        require_sound("age", {"type": "numeric", "fill_na": number}, "feature_map.json")
