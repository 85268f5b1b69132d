"""What settings say of each other: the monitor and its mode, gAUC and its groups, features and those who name them.

The schema holds each setting alone; these rules need several at once, and some that a run would break only after an
hour of training, or keep the worst epoch without a word.
"""

import re
from collections.abc import Mapping

from mm_fibinet.errors import UserError
from mm_fibinet.module_names import refuse_module_name
from mm_fibinet.names import did_you_mean
from mm_fibinet.setting_types import LOSSES
from mm_fibinet.yaml_reader import shown

LOWER_IS_BETTER = ("logloss", "binary_crossentropy")
GROUP_METRICS = ("gAUC",)
USER_ID = "user_id"
ITEM_SEQ = "item_seq"
NO_GROUPS = ("item_id", ITEM_SEQ)
COLUMNS_OF_ITEM_INFO = {  # settings that name columns which the data set's entry need not have, and their type
    "similarity_only": "embedding",
    "modality_features": "embedding",
    "low_rank_fusion": "embedding",
    "code_feature": "sequence",
}


def monitor_mode(monitor: str | dict[str, float]) -> str:
    """Which way a monitor is better: "max" or "min".

    Args:
        monitor: a metric, or metrics with weights as FuxiCTR's Monitor takes them.

    Raises:
        UserError: the weights pull both ways, or there is none.
    """
    weights = {monitor: 1} if isinstance(monitor, str) else monitor
    ways = {(weight > 0) != (metric in LOWER_IS_BETTER) for metric, weight in weights.items() if weight}
    if len(ways) != 1:
        raise UserError(
            f"monitor is {shown(monitor)}, expected weights that pull one way: AUC and gAUC above 0 and "
            "logloss below 0, or all the other way round"
        )
    return "max" if ways.pop() else "min"


def columns_of_item_info(params: dict) -> dict[str, list[str]]:
    """{setting: the columns it names}; item_info may have them though the data set's entry does not say so."""
    named = {setting: params.get(setting) or [] for setting in COLUMNS_OF_ITEM_INFO}
    return {setting: [names] if isinstance(names, str) else list(names) for setting, names in named.items()}


def check_together(params: dict, origin) -> dict:
    """Hold settings that passed the schema against each other.

    Args:
        params: settings of one experiment.
        origin: a function from a setting's name to where it was set, for the error.

    Returns:
        the settings, with the monitor's mode.

    Raises:
        UserError: two of them contradict each other.
    """
    mode = _in_place(origin("monitor"), monitor_mode, params.get("monitor", "AUC"))
    if params.get("monitor_mode", mode) != mode:
        raise UserError(
            f"{origin('monitor_mode')}: monitor_mode is {params['monitor_mode']}, which would keep the worst epoch by "
            f"{shown(params.get('monitor', 'AUC'))}; leave it out, or set {mode}"
        )
    columns = active_columns(params, origin("feature_cols"))
    _check_items(params, columns, origin)
    _check_group(params, columns, origin)
    _check_features(params, columns, origin)
    _check_activations(params, origin)
    _check_table_optimizer(params, origin)
    weights = params.get("pos_weight", 1.0), params.get("focal_gamma", 2.0)
    _in_place(origin("loss"), lambda loss: require_loss(loss, *weights), params.get("loss", "bce"))
    return {**params, "monitor_mode": mode}


def active_columns(params: dict, where: str) -> dict[str, dict]:
    """The active features by name, in the order of feature_cols, lists of names expanded."""
    columns: dict[str, dict] = {}
    for column in params["feature_cols"]:
        names = column["name"] if isinstance(column["name"], list) else [column["name"]]
        for name in names:
            if name in columns:
                raise UserError(f"{where}: feature_cols has {name} twice, expected each feature once")
            if column.get("active", True):
                columns[name] = column
    return columns


def require_loss(loss: str | Mapping[str, float], pos_weight: float, focal_gamma: float) -> None:
    """A UserError when pos_weight or focal_gamma is set and no term of the loss reads it."""
    terms = {"bce"} if loss in LOSSES else set() if isinstance(loss, str) else set(loss)  # others are torch's
    for name, value, default, readers in (
        ("pos_weight", pos_weight, 1, ("bce", "focal")),
        ("focal_gamma", focal_gamma, 2, ("focal",)),
    ):
        if value != default and terms.isdisjoint(readers):
            raise UserError(
                f"{name} is {value}, which only {' and '.join(readers)} read, but the loss is {shown(loss)}; leave "
                f"{name} out, or set for example loss: {{{readers[-1]}: 1}}"
            )


def require_group_column(params: dict) -> None:
    """A UserError when the splits that are there lack the column of group_id; what cannot be read is left alone."""
    group = params.get("group_id")
    if not group:
        return
    from mm_fibinet.parquet_reader import open_parquet  # it takes a while, and a script's --help does not need it

    for key in ("train_data", "valid_data"):
        path = params[key]
        try:
            names = open_parquet(path).schema_arrow.names
        except UserError:
            continue
        if group not in names:
            raise UserError(f"group_id is {group!r}, {path} has {', '.join(names)}; expected a column of the split")


def check_reachable(params: dict, num_batches: int) -> None:
    """A UserError when eval_steps is more than the run has: nothing would ever be evaluated or kept.

    Args:
        params: of `load_params`.
        num_batches: batches of one epoch.
    """
    eval_steps, steps = params.get("eval_steps"), params["epochs"] * num_batches
    if eval_steps and eval_steps > steps:
        raise UserError(
            f"eval_steps is {eval_steps}, but the run has {steps} steps (epochs {params['epochs']} x batches "
            f"{num_batches}): it would end without an evaluation; expected at most {steps}, or null for every epoch"
        )


def _check_items(params: dict, columns: dict[str, dict], origin) -> None:
    """A history is one of items, which item_info has."""
    if not params.get("item_info") and (ITEM_SEQ in columns or params.get("item_feature")):
        named = ITEM_SEQ if ITEM_SEQ in columns else "item_feature"
        raise UserError(
            f"{origin('item_info')}: item_info is not set, expected a path: {named} is of items, which item_info has; "
            "data without a history need neither"
        )


def _check_group(params: dict, columns: dict[str, dict], origin) -> None:
    group = params.get("group_id")
    monitor = params.get("monitor", "AUC")
    computed = [*params.get("metrics", []), *([monitor] if isinstance(monitor, str) else monitor)]
    for metric in GROUP_METRICS:
        if metric in computed and not group:
            raise UserError(f"{metric} needs group_id, for example group_id: {USER_ID}")
    label = params.get("label_col") or {"name": "label"}
    labels = [entry["name"] for entry in ([label] if isinstance(label, dict) else label)]
    kind = columns.get(str(group), {})
    is_ids = kind.get("type", "meta") in ("meta", "categorical") and kind.get("source") != "item"
    if group in (*NO_GROUPS, *labels) or not is_ids:
        raise UserError(
            f"{origin('group_id')}: group_id is {group!r}, expected a column of the split that has an id a row and is "
            f"not {', '.join(NO_GROUPS)} or the label, for example {USER_ID}"
        )


def _check_features(params: dict, columns: dict[str, dict], origin) -> None:
    """Features that are named exist, and have what is asked of them."""
    of_item_info = {
        name: COLUMNS_OF_ITEM_INFO[setting]
        for setting, names in columns_of_item_info(params).items()
        for name in names
        if name not in columns
    }
    for name in params.get("use_features") or []:
        if name not in columns and name not in of_item_info:
            raise UserError(f"{origin('use_features')}: use_features has {name!r}, {_expected(name, columns)}")
    used = params.get("use_features")
    kinds = {name: columns[name]["type"] for name in used or columns if name in columns}
    kinds.update(of_item_info)
    if params.get("user_id_field") and kinds.get(USER_ID) == "meta":
        kinds[USER_ID] = "categorical"
    refuse_module_names(kinds, origin("feature_cols"))
    specs = {name: dict(columns.get(name, {})) for name in kinds}
    for spec in params.get("feature_specs") or []:
        for name in spec["name"] if isinstance(spec["name"], list) else [spec["name"]]:
            where = f"{origin('feature_specs')}: feature_specs"
            if name not in kinds:
                raise UserError(f"{where} has {name!r}, {_expected(name, kinds)}")
            if kinds[name] == "meta" or ("feature_encoder" in spec and kinds[name] != "sequence"):
                raise UserError(f"{where} changes {name}, which is of type {kinds[name]} and has none of that")
            specs[name].update({key: value for key, value in spec.items() if key != "name"})
    _check_shared_tables(specs, kinds, origin("feature_cols"))


def _check_shared_tables(specs: dict[str, dict], kinds: dict[str, str], where: str) -> None:
    """FuxiCTR makes a table of its own, never initialised, where the other feature's is not there yet."""
    order = list(specs)
    for name, spec in specs.items():
        other = spec.get("share_embedding")
        if other is None:
            continue
        with_table = {kinds[name], kinds.get(other)} <= {"categorical", "sequence"}
        if not with_table or order.index(other) >= order.index(name):
            raise UserError(
                f"{where}: feature {name}: share_embedding is {other!r}, expected a categorical or sequence feature "
                "that stands before it"
            )
        fits = "vocab_size" not in specs[other] or spec.get("vocab_size", 0) <= specs[other]["vocab_size"]
        if not fits or spec.get("embedding_dim") != specs[other].get("embedding_dim"):
            raise UserError(
                f"{where}: feature {name}: share_embedding is {other!r}, whose table has another embedding_dim or a "
                f"smaller vocab_size, expected at least {name}'s"
            )


def _expected(name: str, known) -> str:
    meant = did_you_mean(name, known)
    return f"expected active features{f', {meant}' if meant else ': ' + ', '.join(known)}"


def refuse_module_names(kinds: dict[str, str], where: str) -> None:
    """FuxiCTR keeps tables in torch's ModuleDict, by the features' names."""
    from torch import nn

    modules = nn.ModuleDict()
    for name, kind in kinds.items():
        if kind != "meta":
            refuse_module_name(name, where, hasattr(modules, name))


def _check_activations(params: dict, origin) -> None:
    """A list of activations has one a layer."""
    for name, value in params.items():
        if not isinstance(value, list) or not re.fullmatch(r".*activations", name):
            continue
        units = re.sub(r"(hidden_)?activations$", "hidden_units", name)
        if not isinstance(params.get(units), list) or len(params[units]) != len(value):
            raise UserError(f"{origin(name)}: {name} is {shown(value)}, expected one name, or one a layer of {units}")


def _check_table_optimizer(params: dict, origin) -> None:
    """Tables trained in their touched rows need Adam (see mm_fibinet.table_optimizer, which brings torch)."""
    optimizer, of_tables = params.get("optimizer", "adam"), params.get("table_optimizer", "dense")
    if of_tables != "dense" and optimizer.lower() != "adam":
        raise UserError(
            f"{origin('table_optimizer')}: table_optimizer is {of_tables}, which needs Adam for the rest of the model, "
            f"and optimizer is {optimizer}; set optimizer: adam, or table_optimizer: dense"
        )


def _in_place(where: str, check, value):
    try:
        return check(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
