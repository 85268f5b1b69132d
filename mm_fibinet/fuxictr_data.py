"""FuxiCTR's own data sets: those it has prepared run as they are, raw ones are for build_dataset.py.

FuxiCTR keeps a prepared data set in `data_root/dataset_id/`: splits whose values are ids and scaled numbers, and
feature_map.json, which says what they are. Such an entry of the config needs no feature_cols: they are read from there.
Every feature is a column of the split, those of the item too; there is neither item_info nor a history.
"""

import difflib
import json
from pathlib import Path

from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.yaml_reader import shown

FEATURE_MAP = "feature_map.json"
MAX_BYTES = 64 << 20  # of a feature map; FuxiCTR's largest have thousands of features and less than one
READY, NPZ = "parquet", "npz"
SPLITS = ("train_data", "valid_data", "test_data")
RAW_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".h5", ".hdf5", ".tfrecord")
OF_NO_USE = ("padding_idx", "oov_idx")  # padding is 0 in every table


def complete_entry(entry: dict, where: str, data_root: str | None = None) -> dict:
    """A data set's entry with what FuxiCTR's own leave to feature_map.json; others as they are.

    Args:
        entry: of the config, with its dataset_id.
        where: what an error begins with.
        data_root: in place of the entry's.

    Raises:
        UserError: the files are raw, nothing says what their columns are, or feature_map.json is none.
    """
    build = f"python build_dataset.py --recipe RECIPE.yaml --out data/{entry['dataset_id']}"
    data_format = entry.get("data_format", READY)
    raw = [f"{key} is {entry[key]}" for key in SPLITS if str(entry.get(key) or "").lower().endswith(RAW_SUFFIXES)]
    if data_format not in (READY, NPZ) or raw:
        found = raw[0] if data_format in (READY, NPZ) else f"data_format is {shown(data_format)}"
        raise UserError(
            f"{where}: {found}, expected {READY} with ids; build_dataset.py makes the vocabularies and writes it: "
            f"{build}"
        )
    if data_format == NPZ:
        entry = {**entry, **{key: _with_suffix(entry[key]) for key in SPLITS if isinstance(entry.get(key), str)}}
    if entry.get("feature_cols") is not None:
        return entry
    path = Path(str(data_root or entry.get("data_root") or ".")) / str(entry["dataset_id"]) / FEATURE_MAP
    if not path.is_file():
        if difflib.get_close_matches("feature_cols", entry, cutoff=0.7):
            return entry  # the schema says that it is misspelt
        raise UserError(
            f"{where}: feature_cols is not set, expected a list of features, or FuxiCTR's own in {path}; for raw data, "
            f"build_dataset.py makes files and features: {build}"
        )
    return {**entry, **_columns(path, entry["dataset_id"])}


def _with_suffix(path: str) -> str:
    """FuxiCTR's way with the names of npz files."""
    return path if path.endswith(f".{NPZ}") else f"{path}.{NPZ}"


def _columns(path: Path, dataset_id: object) -> dict:
    """feature_cols and label_col of a feature map.

    Numbers are scaled already, so that no normalizer is to be fitted. Where a config of FuxiCTR's leaves out the
    sources, an item_id is the item's all the same.
    """
    from mm_fibinet.schema import ITEM_ID  # which brings pyarrow

    try:
        with open(path, "rb") as opened:
            text = opened.read(MAX_BYTES + 1)
        content = json.loads(text)
        features = {str(name): dict(spec) for entry in content["features"] for name, spec in entry.items()}
        labels, found_id = [str(label) for label in content["labels"]], content["dataset_id"]
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not FuxiCTR's feature map ({shown(error)}); expected features and labels") from error
    if found_id != dataset_id:
        raise UserError(f"{path}: is of data set {shown(found_id)}, expected {shown(dataset_id)}")
    columns = [
        {"name": name, **{key: value for key, value in spec.items() if key not in OF_NO_USE and value is not None}}
        for name, spec in features.items()
    ]
    for column in columns:
        if column.get("type") == "numeric":
            column["normalizer"] = "none"
        if column["name"] == ITEM_ID and not column.get("source"):
            column["source"] = "item"
        if column.get("max_len") == 0:  # FuxiCTR's for lists of the file's own length
            del column["max_len"]
        if column.get("type") == "sequence":  # one without an encoder stays a sequence: models attend to it
            column.setdefault("feature_encoder", None)
    return {"feature_cols": columns, "label_col": [{"name": label} for label in labels]}
