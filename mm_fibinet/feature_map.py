"""FuxiCTR's FeatureMap from the dataset config, without writing anything.

FuxiCTR's FeatureProcessor writes to the data folder, which may be read-only. Ids are contiguous already, so all that it
would find out is in the config or in the files.
"""

import json
from pathlib import Path

from fuxictr.features import FeatureMap

from mm_fibinet import files, schema
from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.item_table import embedding_width

USER_ID = "user_id"
SEQUENCE_ENCODERS = ("layers.MaskedAveragePooling()", "layers.MaskedSumPooling()")
FEATURE_TYPES = ("meta", "numeric", "categorical", "sequence", "embedding")


def build_feature_map(params: dict) -> FeatureMap:
    """FuxiCTR's FeatureMap from the dataset config, as FeatureMap.load would leave it.

    A vocab_size, pretrain_dim or max_len that is not given is read from the data.

    Args:
        params: of `load_params`; with user_id_field, user_id becomes a field even where the data set has it as meta;
            what similarity_only names need not be in the data set's entry, being no field of other models.
    """
    used = params.get("use_features")
    features = {}
    for column in _expanded_columns(params):
        if column.get("active", True) is not False and (not used or column["name"] in used):
            features[column["name"]] = _feature_spec(column, params)
    for name in params.get("similarity_only") or []:
        if name not in features:
            features[name] = _compared_spec(name, params)
    if params.get("user_id_field"):
        features[USER_ID] = _user_id_spec(features.get(USER_ID), params)
    for name in used or []:
        if name not in features:
            raise UserError(f"use_features has {name!r}, expected active features of {params['dataset_id']}")
    label = params.get("label_col") or {"name": "label"}
    feature_map = FeatureMap(params["dataset_id"], str(params.get("data_root", "")))
    feature_map.features = features
    feature_map.labels = [column["name"] for column in (label if isinstance(label, list) else [label])]
    feature_map.group_id = params.get("group_id")
    feature_map.default_emb_dim = params.get("embedding_dim")
    if params.get("feature_specs"):
        feature_map.update_feature_specs(params["feature_specs"])
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.total_features = sum(spec.get("vocab_size", 1) for spec in features.values() if spec["type"] != "meta")
    feature_map.set_column_index()
    return feature_map


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


def load_feature_map(path: Path, params: dict) -> FeatureMap:
    """Read a run's feature_map.json back.

    Args:
        path: of `save_feature_map`.
        params: the run's settings.

    Raises:
        UserError: the file is missing, damaged, or names code.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        features = {name: spec for feature in content["features"] for name, spec in feature.items()}
        labels = content["labels"]
        encoders = {spec.get("feature_encoder", SEQUENCE_ENCODERS[0]) for spec in features.values()}
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a feature_map.json; train the run again") from error
    if not encoders <= set(SEQUENCE_ENCODERS):
        raise UserError(f"{path}: feature_encoder must be one of {', '.join(SEQUENCE_ENCODERS)}")
    feature_map = FeatureMap(params["dataset_id"], str(params.get("data_root", "")))
    feature_map.features, feature_map.labels = features, labels
    feature_map.group_id = params.get("group_id")
    feature_map.default_emb_dim = params.get("embedding_dim")
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.total_features = content.get("total_features")
    feature_map.set_column_index()
    return feature_map


def _expanded_columns(params: dict) -> list[dict]:
    """feature_cols with lists of names expanded, as FuxiCTR does."""
    columns = []
    for column in params["feature_cols"]:
        if not isinstance(column, dict) or "name" not in column or column.get("type") not in FEATURE_TYPES:
            raise UserError(
                f"dataset {params['dataset_id']}: feature_cols has {column!r}, expected a name and a type out of "
                f"{', '.join(FEATURE_TYPES)}"
            )
        names = column["name"] if isinstance(column["name"], list) else [column["name"]]
        columns += [{**column, "name": name} for name in names]
    return columns


def _compared_spec(name: str, params: dict) -> dict:
    """An embedding column of item_info that the data set's entry does not name."""
    found = schema.open_parquet(params["item_info"]).schema_arrow.names
    if name not in found:
        raise UserError(
            f"similarity_only has {name!r}, {params['item_info']} has {', '.join(found)}; build that column with "
            "build_item_emb.py --per_modality, or do without it: --set similarity_only=[]"
        )
    return _feature_spec({"name": name, "type": "embedding", "source": "item"}, params)


def _user_id_spec(spec: dict | None, params: dict) -> dict:
    """user_id as a categorical feature, whatever the data set says it is."""
    if spec is None:
        raise UserError(f"user_id_field: dataset {params['dataset_id']} has no active feature {USER_ID}")
    return spec if spec["type"] != "meta" else _feature_spec({"name": USER_ID, "type": "categorical"}, params)


def _feature_spec(column: dict, params: dict) -> dict:
    """One feature's spec, as FuxiCTR's FeatureProcessor writes it."""
    name, kind = column["name"], column["type"]
    if kind == "meta":
        return {"type": "meta"}
    spec = {"source": column.get("source", ""), "type": kind}
    for key in ("embedding_dim", "emb_output_dim", "share_embedding"):
        if key in column:
            spec[key] = column[key]
    if kind in ("categorical", "sequence"):
        spec["padding_idx"] = 0
        spec["vocab_size"] = column.get("vocab_size") or _vocab_size(name, spec["source"], params)
    if kind == "sequence":
        encoder = column.get("feature_encoder", SEQUENCE_ENCODERS[0])
        if encoder not in SEQUENCE_ENCODERS:
            expected = " or ".join(SEQUENCE_ENCODERS)
            raise UserError(f"feature {name}: feature_encoder is {encoder!r}, expected {expected}")
        spec["feature_encoder"] = encoder
        spec["max_len"] = column.get("max_len") or embedding_width(_file_of(spec["source"], params), name)
    if kind == "embedding":
        spec["pretrain_dim"] = column.get("pretrain_dim") or embedding_width(_file_of(spec["source"], params), name)
    return spec


def _file_of(source: str, params: dict) -> str:
    return params["item_info"] if source == "item" else params["train_data"]


def _vocab_size(name: str, source: str, params: dict) -> int:
    """One more than the largest id of a column, over the files that have it."""
    if name == schema.ITEM_ID:
        return schema.open_parquet(params["item_info"]).metadata.num_rows
    keys = ("item_info",) if source == "item" else ("train_data", "valid_data", "test_data")
    largest = 0
    for path in [params[key] for key in keys if params.get(key) and Path(params[key]).exists()]:
        for first, arrays in schema.read_slices(path, [name]):
            read = schema.matrix if "list" in str(arrays[name].type) else schema.scalars
            largest = max(largest, int(read(arrays[name], path, name, first).max()))
    return largest + 1
