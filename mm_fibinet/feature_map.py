"""FuxiCTR's FeatureMap from the dataset config, without writing anything.

FuxiCTR's FeatureProcessor writes to the data folder, which may be read-only. Ids are contiguous already, so all that
it would find out is in the config or in the files: sizes that are not given, and the scale of numeric features. A run
keeps its feature map (`save_feature_map`), and what is scored later with `load_feature_map` is scaled as its training
data were.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from fuxictr.features import FeatureMap

from mm_fibinet import files, normalizer, schema
from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.parquet_reader import exists, is_list, list_width, matrix, open_parquet, read_slices, scalars
from mm_fibinet.setting_types import SEQUENCE_ENCODERS
from mm_fibinet.settings_rules import COLUMNS_OF_ITEM_INFO, columns_of_item_info
from mm_fibinet.user_info import USER_ID, user_features

FEATURE_TYPES = ("meta", "numeric", "categorical", "sequence", "embedding")
MAX_TABLE_BYTES = 8 << 30  # of an embedding table whose size nobody gave but an id in the data
SPEC_KEYS = (
    "type", "source", "embedding_dim", "emb_output_dim", "share_embedding", "fill_na", "padding_idx", "vocab_size",
    "oov_idx", "feature_encoder", "max_len", "pretrain_dim", "normalizer", "shift", "scale",
)  # fmt: skip
DEFAULT_DIM = 64  # where the experiment leaves embedding_dim to its model


def build_feature_map(params: dict, noted: schema.Noted = nullcontext) -> FeatureMap:
    """FuxiCTR's FeatureMap from the dataset config, as FeatureMap.load would leave it.

    A vocab_size, pretrain_dim or max_len that is not given is read from the data. A numeric feature is fitted to the
    training split, one of user_info to the users of that split's rows, one of the items to the rows of item_info behind
    the padding item; its spec holds `normalizer`, `shift` and `scale` (see mm_fibinet.normalizer). item_feature is
    checked where there is one: its levels must fit the features that they stand for.

    Args:
        params: of `load_params`; with user_id_field, user_id becomes a field even where the data set has it as meta;
            what `columns_of_item_info` names need not be in the data set's entry: item_info has it.
        noted: what a fault is handed to; by default it is raised.
    """
    columns = _used_columns(params)
    features = {}
    for name, column in columns.items():
        with noted():
            features[name] = _feature_spec(column, params)
    with noted():
        _share_tables(features)
    labels = label_names(params)
    for label in labels:
        if columns.get(label, {"type": "meta"})["type"] != "meta":
            raise UserError(f"dataset {params['dataset_id']}: {label} is the label and a feature; drop the feature")
    if params.get("item_feature") and params.get("item_info") and exists(params["item_feature"]):
        with noted():
            _check_item_feature(features, params, noted)
    return _feature_map(features, labels, params)


def save_feature_map(feature_map: FeatureMap, path: Path) -> None:
    """Write feature_map.json in FuxiCTR's format, whole or not at all."""
    content = {
        "dataset_id": feature_map.dataset_id,
        "num_fields": feature_map.num_fields,
        "total_features": feature_map.total_features,
        "input_length": feature_map.input_length,
        "labels": feature_map.labels,
        "features": [{name: spec} for name, spec in feature_map.features.items()],
    }
    files.write_json(path, content)


def load_feature_map(path: str | Path, params: dict) -> FeatureMap:
    """A run's feature map as it was saved: the features it used, their sizes and scales.

    Args:
        path: feature_map.json of a run.
        params: dataset_id, group_id and embedding_dim of the run. Its use_features and feature_specs are in the file.

    Raises:
        UserError: the file cannot be read, is another data set's, or holds what no feature map of ours does.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        features = {str(name): dict(spec) for entry in content["features"] for name, spec in entry.items()}
        dataset_id, labels = content["dataset_id"], [str(label) for label in content["labels"]]
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a feature map ({error!r}); train the run again") from error
    if dataset_id != params["dataset_id"]:
        raise UserError(f"{path}: is of data set {dataset_id}, expected {params['dataset_id']}")
    for name, spec in features.items():
        require_sound(name, spec, path)
    return _feature_map(features, labels, params)


def label_names(params: dict) -> list[str]:
    """The label columns of a data set, as FuxiCTR names them: label_col is one entry or a list of them."""
    entries = params.get("label_col") or {"name": "label"}
    entries = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in entries):
        raise UserError(f"dataset {params['dataset_id']}: label_col is {entries!r}, expected a mapping with a name")
    return [entry["name"] for entry in entries]


def _feature_map(features: dict[str, dict], labels: list[str], params: dict) -> FeatureMap:
    feature_map = FeatureMap(params["dataset_id"], str(params.get("data_root", "")))
    feature_map.features = features
    feature_map.labels = labels
    feature_map.group_id = params.get("group_id")
    feature_map.default_emb_dim = params.get("embedding_dim")
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.total_features = sum(spec.get("vocab_size", 1) for spec in features.values() if spec["type"] != "meta")
    feature_map.set_column_index()
    return feature_map


def _used_columns(params: dict) -> dict[str, dict]:
    """{feature: its line of feature_cols} of the features that the experiment uses, feature_specs applied.

    They are in the order of use_features where it is set, as FuxiCTR has them: the fields' order, and so the meaning of
    a layer's weights behind them.
    """
    dataset, used = params["dataset_id"], params.get("use_features")
    changes = _feature_specs(params.get("feature_specs") or [])
    known = {name: {**column, **changes.get(name, {})} for name, column in _expanded_columns(params).items()}
    columns = {name: known[name] for name in used or known if name in known}
    columns = {name: column for name, column in columns.items() if column.get("active", True) is not False}
    for name in used or []:
        if name not in columns:
            raise UserError(f"use_features has {name!r}, expected active features of {dataset}")
    if params.get("user_id_field"):
        if USER_ID not in columns:
            raise UserError(f"user_id_field: dataset {dataset} has no active feature {USER_ID}")
        if columns[USER_ID]["type"] == "meta":
            columns[USER_ID] = {"name": USER_ID, **changes.get(USER_ID, {}), "type": "categorical"}
    for setting, names in columns_of_item_info(params).items():
        for name in names:
            if name not in columns:
                columns[name] = known.get(name) or {**_item_column(setting, name, params), **changes.get(name, {})}
    for name in changes:
        if name not in known and name not in columns:
            raise UserError(f"feature_specs has {name!r}, expected features of {dataset}: {', '.join(known)}")
    return columns


def _expanded_columns(params: dict) -> dict[str, dict]:
    """feature_cols by name, with lists of names expanded, as FuxiCTR does."""
    columns: dict[str, dict] = {}
    if not isinstance(params.get("feature_cols"), list):
        raise UserError(f"dataset {params['dataset_id']}: feature_cols is not set, expected a list of features")
    for column in params["feature_cols"]:
        if not isinstance(column, dict) or "name" not in column or column.get("type") not in FEATURE_TYPES:
            raise UserError(
                f"dataset {params['dataset_id']}: feature_cols has {column!r}, expected a name and a type out of "
                f"{', '.join(FEATURE_TYPES)}"
            )
        for name in _names(column):
            if name in columns:
                raise UserError(f"dataset {params['dataset_id']}: feature_cols has {name} twice, expected each once")
            columns[name] = {**column, "name": name}
    return columns


def _feature_specs(changes: list[dict]) -> dict[str, dict]:
    """{feature: what the experiment's feature_specs change in its line of feature_cols}."""
    found: dict[str, dict] = {}
    for change in changes:
        if not isinstance(change, dict) or "name" not in change:
            raise UserError(f"feature_specs has {change!r}, expected a name and what to change")
        for name in _names(change):
            found[name] = {**found.get(name, {}), **{key: change[key] for key in change if key != "name"}}
    return found


def _names(column: dict) -> list[str]:
    return column["name"] if isinstance(column["name"], list) else [column["name"]]


def _item_column(setting: str, name: str, params: dict) -> dict:
    """The line of a column of item_info that the data set's entry does not name."""
    if not params.get("item_info"):
        raise UserError(f"{setting} has {name!r}, and the data set has no item_info; leave {setting} out")
    found = open_parquet(params["item_info"]).schema_arrow.names
    if name not in found:
        raise UserError(
            f"{setting} has {name!r}, {params['item_info']} has {', '.join(found)}; add that column "
            f"(build_item_emb.py makes embeddings), or name another in {setting}"
        )
    return {"name": name, "type": COLUMNS_OF_ITEM_INFO[setting], "source": "item"}


def _feature_spec(column: dict, params: dict) -> dict:
    """One feature's spec, as FuxiCTR's FeatureProcessor writes it."""
    name, kind = column["name"], column["type"]
    if kind == "meta":
        return {"type": "meta"}
    source = column.get("source", "")
    spec = {"source": source, "type": kind}
    for key in ("embedding_dim", "emb_output_dim", "share_embedding", "fill_na"):
        if column.get(key) is not None:
            spec[key] = column[key]
    _require_fill_na(name, spec)
    if kind in ("categorical", "sequence"):
        if not (name == USER_ID and params.get("user_id_field")):  # users are numbered from 0, and 0 is one of them
            spec["padding_idx"] = 0
        spec["vocab_size"] = column.get("vocab_size") or _vocab_size(column, spec, params)
    if kind == "sequence":
        spec["feature_encoder"] = column.get("feature_encoder", SEQUENCE_ENCODERS[0])
        spec["max_len"] = column.get("max_len") or list_width(_file_of(name, source, params), name)
    elif column.get("feature_encoder") is not None:
        raise UserError(f"feature {name}: feature_encoder is for type sequence, found {kind}; drop it")
    if kind == "embedding":
        if column.get("scale") is not None:
            spec["scale"] = column["scale"]
        spec["pretrain_dim"] = column.get("pretrain_dim") or list_width(_file_of(name, source, params), name)
    if kind == "numeric":
        scale = normalizer.normalizer_name(column.get("normalizer", normalizer.STANDARD), name)
        if scale is not None:
            spec.update({"normalizer": scale, **normalizer.fit(_training_numbers(name, spec, params), scale)})
    elif "normalizer" in column:
        raise UserError(f"feature {name}: normalizer is for type numeric, found {kind}; drop it")
    require_sound(name, spec, f"dataset {params['dataset_id']}")
    return spec


def require_sound(name: str, spec: dict, where: str | Path) -> None:
    """Refuse a feature's spec that no feature map of ours has: nothing else may reach FuxiCTR, which evaluates text."""

    def refuse(key: str, expected: str) -> None:
        raise UserError(f"{where}, feature {name}: {key} is {spec.get(key)!r}, expected {expected}")

    if spec.get("type") not in FEATURE_TYPES:
        refuse("type", f"one of {', '.join(FEATURE_TYPES)}")
    kind = spec["type"]
    if name == schema.ITEM_SEQ and kind != "meta":
        refuse("type", "meta: it is the history, whose items have the features of source item")
    if name == schema.ITEM_ID and kind != "meta" and (kind, spec.get("source")) != ("categorical", "item"):
        refuse(
            "type" if kind != "categorical" else "source", "categorical, of source item: history and target share it"
        )
    for key in spec:
        if key not in SPEC_KEYS:
            raise UserError(f"{where}, feature {name}: {key} is unknown, expected some of {', '.join(SPEC_KEYS)}")
    if spec.get("feature_encoder") not in ((*SEQUENCE_ENCODERS, None) if kind == "sequence" else (None,)):
        refuse("feature_encoder", " or ".join(SEQUENCE_ENCODERS) + ", of type sequence")
    sizes = {"categorical": ["vocab_size"], "sequence": ["vocab_size", "max_len"], "embedding": ["pretrain_dim"]}
    for key in [*sizes.get(kind, []), *(key for key in ("embedding_dim", "emb_output_dim") if key in spec)]:
        if type(spec.get(key)) is not int or not 1 <= spec[key] <= 2**31:
            refuse(key, "a whole number from 1 to 2147483648 (ids are int32)")
    _require_fill_na(name, spec)
    if "scale" in spec and not (_is_number(spec["scale"]) and spec["scale"] > 0):
        refuse("scale", "a number above 0; the feature has values too large to scale, or no scale")
    if "scale" in spec and kind != "embedding" and not _is_number(spec.get("shift")):
        refuse("shift", "a number, beside a scale")


def _require_fill_na(name: str, spec: dict) -> None:
    """What stands for a null: a number of a numeric feature, an id of a categorical one."""
    fill_na = spec.get("fill_na")
    if fill_na is None:
        return
    if spec["type"] == "numeric" and _is_number(fill_na):
        return
    if spec["type"] == "categorical" and type(fill_na) is int and 0 <= fill_na < spec.get("vocab_size", 2**31):
        return
    raise UserError(
        f"feature {name}: fill_na is {fill_na!r}, expected a number (type numeric) or an id below vocab_size (type "
        "categorical)"
    )


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # neither NaN nor infinite, nor an integer that no float holds


def _share_tables(features: dict[str, dict]) -> None:
    """Give features that share an embedding table one size, as FuxiCTR merges their vocabularies.

    FuxiCTR builds the tables in the features' order, and one that is not there yet would silently not be shared.
    """
    names = list(features)
    for name, spec in features.items():
        other = spec.get("share_embedding")
        if other is None:
            continue
        earlier = [known for known in names[: names.index(name)] if "vocab_size" in features[known]]
        if other not in earlier or "vocab_size" not in spec:
            raise UserError(
                f"feature {name}: share_embedding is {other!r}, expected a categorical or sequence feature before it"
                f"{': ' + ', '.join(earlier) if earlier else ''}"
            )
        while "share_embedding" in features[other]:
            other = features[other]["share_embedding"]
        owner = features[other]
        if spec.get("embedding_dim") != owner.get("embedding_dim"):
            raise UserError(f"feature {name}: embedding_dim must be that of {other}, whose embedding it shares")
        spec["vocab_size"] = owner["vocab_size"] = max(spec["vocab_size"], owner["vocab_size"])


def _file_of(name: str, source: str, params: dict) -> str | Path:
    """The file that a feature's sizes and scale are read from; the split where there are no items."""
    if _is_of_users(name, source, params):
        return params["user_info"]
    if source != "item" or not params.get("item_info"):
        return params["train_data"]
    return source_file(name, params["item_info"], params.get("item_feature"))


def _is_of_users(name: str, source: str, params: dict) -> bool:
    """Whether a feature is looked up by user_id, in user_info."""
    return bool(user_features(params.get("user_info"), {name: {"source": source, "type": ""}}))


def _numbers_of_users(name: str, spec: dict, params: dict) -> Iterator[np.ndarray]:
    """A numeric feature of user_info, for the users of the training split's rows: float64 [n] each."""
    path, rows = params["user_info"], params["train_data"]
    slices = [schema.read_numbers(arrays[name], path, name, spec, first) for first, arrays in read_slices(path, [name])]
    values = np.concatenate(slices)
    for first, arrays in read_slices(rows, [USER_ID]):
        users = scalars(arrays[USER_ID], rows, USER_ID, first)
        schema.require_range(users, rows, USER_ID, len(values), "users in user_info", first)
        yield values[users]


def source_file(name: str, item_info: str | Path, item_feature: str | Path | None) -> str | Path:
    """The file that an item-side feature is read from: item_info, or item_feature where only that has the column."""
    if name in open_parquet(item_info).schema_arrow.names or not item_feature or not exists(item_feature):
        return item_info
    return item_feature if name in open_parquet(item_feature).schema_arrow.names else item_info


def _training_numbers(name: str, spec: dict, params: dict) -> Iterator[np.ndarray]:
    """A numeric feature's values of the training split, or of the items without the padding item: float64 [n] each."""
    if _is_of_users(name, spec["source"], params):
        yield from _numbers_of_users(name, spec, params)
        return
    path = _file_of(name, spec["source"], params)
    of_items = spec["source"] == "item" and bool(params.get("item_info"))
    for first, arrays in read_slices(path, [name, schema.ITEM_ID] if of_items else [name]):
        values = schema.read_numbers(arrays[name], path, name, spec, first)
        if of_items:
            values = values[scalars(arrays[schema.ITEM_ID], path, schema.ITEM_ID, first) != 0]
        yield values


def _vocab_size(column: dict, spec: dict, params: dict) -> int:
    """One more than the largest id of a column, over the files that have it."""
    name = column["name"]
    has_items = bool(params.get("item_info"))
    if name == schema.ITEM_ID and has_items:
        return open_parquet(params["item_info"]).num_rows
    if name == USER_ID and params.get("user_info"):
        return open_parquet(params["user_info"]).num_rows
    if (spec["source"] == "item" and has_items) or _is_of_users(name, spec["source"], params):
        paths = [_file_of(name, spec["source"], params)]
    else:
        paths = [params[key] for key in ("train_data", "valid_data", "test_data") if params.get(key)]
        paths = [path for path in paths if exists(path)]
        if name in schema.LEVELS and has_items and params.get("item_feature"):  # the history's items carry theirs
            level_file = source_file(name, params["item_info"], params["item_feature"])
            paths += [level_file] if name in open_parquet(level_file).schema_arrow.names else []
    largest, place = 0, ""
    for path in paths:
        for first, arrays in read_slices(path, [name]):
            if is_list(arrays[name].type):
                values = matrix(arrays[name], path, name, first)
            else:
                values = scalars(arrays[name], path, name, first, fill_na=spec.get("fill_na"))
            if values.size and values.max() > largest:
                largest = int(values.max())
                place = f"{path}: column {name} has {largest} in row {first + int(values.argmax()) // values[0].size}"
    width = spec.get("embedding_dim") or params.get("embedding_dim") or DEFAULT_DIM
    size = (largest + 1) * 4 * (width if isinstance(width, int) else DEFAULT_DIM)
    if size > MAX_TABLE_BYTES:
        raise UserError(
            f"{place}: an embedding for each id up to that would take {size / 2**30:,.0f} GiB; number the ids 1, 2, 3, "
            "... or set vocab_size in feature_cols"
        )
    return largest + 1


def _check_item_feature(features: dict[str, dict], params: dict, noted: schema.Noted) -> None:
    """item_feature's ids are items, each once, and its levels fit the features of these names."""
    path = params["item_feature"]
    present = open_parquet(path).schema_arrow.names
    levels = {name: features[name] for name in schema.LEVELS if name in present and name in features}
    levels = {name: spec for name, spec in levels.items() if spec["type"] != "meta"}
    schema.read_item_feature(path, levels, open_parquet(params["item_info"]).num_rows, noted)
