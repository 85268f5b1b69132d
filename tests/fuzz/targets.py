"""The targets: what is changed, which commands then run, and what "right" means when they end with 0."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from conftest import make_dataset
from hypothesis import strategies as st
from user_data import make_forms

from fuzz import build_targets, file_targets, item_targets, log_targets
from fuzz.changes import (
    CODE,
    NUMBERS,
    SPECIAL,
    TEXTS,
    byte_changes,
    change_bytes,
    change_table,
    set_canary,
    table_changes,
)
from fuzz.oracle import Fault, Place

Run = Callable[[Place, Path, Any], list[int]]
EXPERIMENTS = ("FiBiNET_test", "FiBiNET_levels", "DIN_test")
TRAINING_FILES = ("train", "valid", "item_info")  # what a training without levels reads
FILES = (*TRAINING_FILES, "test", "item_feature")


class Target(NamedTuple):
    """A kind of input.

    Attributes:
        cases: draws cases: plain data, whose repr repeats them.
        run: applies a case and runs the commands; returns their exit codes.
        share: of the cases of a session.
    """

    cases: st.SearchStrategy
    run: Run
    share: int = 1


def make_base(base: Path) -> None:
    """What all cases start from: a small data set, a run trained on it, and items with images and a feature store."""
    if (base / "made").exists():
        return
    data = base / "data"
    config = make_dataset(data, rows=60)
    with open(config / "model_config.yaml", "a") as opened:
        opened.write("FiBiNET_levels: {<<: *test, history_levels: True}\n")
        opened.write("DIN_test: {<<: *test, model: DIN, dnn_hidden_units: [8], attention_hidden_units: [8]}\n")
    text = (config / "model_config.yaml").read_text()
    (config / "model_config.yaml").write_text(text.replace("    hidden_units: [16]\n", ""))
    make_forms(base / "forms", rows=300)  # some of the 50 users have both labels
    file_targets.make_base(base)
    build_targets.make_base(base)
    item_targets.make_base(base)
    log_targets.make_base(base)
    (base / "made").touch()


def data_copy(place: Path, base: Path, data: str = "data") -> Path:
    """A data set of the base in a folder of its own; the config names its files there. Returns the config folder."""
    shutil.copytree(base / data, place, dirs_exist_ok=True)
    for path in (place / "config").glob("*.yaml"):
        path.write_text(path.read_text().replace(str(base / data), str(place)))
    return place / "config"


def train(place: Path | Place, expid: str, *changes: str) -> Any:
    """Run one epoch on the data set that is given."""
    arguments = ["--config", place.given / "config", "--expid", expid, "--model_root", place.out / "runs"]
    once = [] if any(change.startswith("epochs=") for change in changes) else ["epochs=1"]
    return place.run("run_expid", *arguments, "--set", *once, *changes, results=("runs/**/*.model",))


def require_result(place: Place) -> None:
    """A finished run holds finite metrics of the right size."""
    [path] = place.out.glob("runs/**/result.json")
    metrics = json.loads(path.read_text())["metrics"]
    for name, value in metrics.items():
        if value is None or not math.isfinite(value) or value < 0 or (name != "logloss" and value > 1):
            raise Fault(f"run_expid: ended with 0 and {name} is {value}")


def predict(place: Place, expid: str) -> list[int]:
    """Score the test split and check the submission; returns the exit codes."""
    arguments = ["--config", place.given / "config", "--expid", expid, "--model_root", place.out / "runs"]
    out = place.out / "submission.zip"
    predicted = place.run("prediction", *arguments, "--out", out, results=("*.zip",))
    if predicted.code:
        return [predicted.code]
    test = place.given / "TEST_DATA" / "test.parquet"
    checked = place.run("mm_fibinet.submission", "check", out, "--test", test)
    if checked.code:
        raise Fault("prediction: wrote a submission that its own check refuses")
    return [0, 0]


def run_data(place: Place, base: Path, case: tuple) -> list[int]:
    """A changed file: check and training agree, and what is trained can be scored."""
    expid, name, change = case
    data_copy(place.given, base)
    path = place.given / ("" if name == "item_feature" else "TEST_DATA") / f"{name}.parquet"
    change_table(path, change) if isinstance(change[0][0], int) else change_bytes_of(path, change)
    checked = place.run("mm_fibinet.data_check", "check", place.given / "TEST_DATA")
    trained = train(place, expid)
    codes = [checked.code, trained.code]
    if trained.code:
        return codes
    reads = name in TRAINING_FILES or (name == "item_feature" and expid == "FiBiNET_levels")
    if reads and checked.code:
        raise Fault(f"run_expid trained on what data_check refused ({name})")
    require_result(place)
    predicted = predict(place, expid)
    if predicted[0] and name in TRAINING_FILES:
        raise Fault(f"prediction refused what run_expid trained on ({name})")
    if not predicted[0] and name == "test" and checked.code:
        raise Fault("prediction scored what data_check refused (test)")
    return [*codes, *predicted]


def run_users(place: Place, base: Path, case: tuple) -> list[int]:
    """A changed file of a data set with user_info: what is trained on passes the check."""
    name, change = case
    config = data_copy(place.given, base, "forms/users")
    path = place.given / "TEST_DATA" / f"{name}.parquet"
    change_table(path, change) if isinstance(change[0][0], int) else change_bytes_of(path, change)
    checked = place.run("mm_fibinet.data_check", "check", "--config", config, "--expid", "FiBiNET_test")
    trained = train(place, "FiBiNET_test")
    if not trained.code:
        if checked.code:
            raise Fault(f"run_expid trained on what data_check refused ({name})")
        require_result(place)
    return [checked.code, trained.code]


def change_bytes_of(path: Path, changes: list[tuple]) -> None:
    """Change a file's bytes."""
    path.write_bytes(change_bytes(path.read_bytes(), changes))


SETTINGS_NUMBERS = tuple(n for n in NUMBERS if abs(n) < 100 or abs(n) >= 2**53)  # nothing that would just be large
setting = st.recursive(
    st.one_of(*map(st.sampled_from, (SETTINGS_NUMBERS, SPECIAL, TEXTS, CODE))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(TEXTS), inner, max_size=2)),
    max_leaves=4,
)
TOKENS = (
    *(
        "&a ",
        "*a",
        "*test",
        "!!python/object/apply:os.mkdir ['{canary}']",
        "!!binary x",
        "\t",
        "\x00",
        "- ",
        ": ",
        "? ",
    ),
    *(
        "<<: *test\n",
        "---\n",
        "...\n",
        "%YAML 9.9\n",
        "{",
        "}",
        "[",
        "'",
        '"',
        "|\n",
        "#",
        "\ufeff",
        "\x85",
        "2026-11-25",
    ),
    *("[" * 2000, "{a: " * 500, "a: &b [x, x]\nc: &d [*b, *b]\n", "Base: 3\n", "Base:\n", "0x10", "1_000", "12:30:45"),
)
yaml_change = st.one_of(
    st.tuples(st.just("value"), st.integers(0, 200), setting),
    st.tuples(st.just("key"), st.integers(0, 200), setting.filter(lambda value: not isinstance(value, list | dict))),
    st.tuples(st.just("delete"), st.integers(0, 200), st.none()),
    st.tuples(st.just("line twice"), st.integers(0, 60), st.none()),
    st.tuples(st.just("token"), st.integers(0, 3000), st.sampled_from(TOKENS)),
    st.tuples(st.just("encoding"), st.just(0), st.sampled_from(["utf-16", "utf-8-sig", "gbk", "latin-1", "utf-32"])),
    st.tuples(st.just("bomb"), st.integers(3, 12), st.none()),
)


def run_yaml(place: Place, base: Path, case: tuple) -> list[int]:
    """A changed config trains with finite metrics or is refused."""
    expid, name, changes = case
    path = data_copy(place.given, base) / f"{name}_config.yaml"
    text, encoding = path.read_text(), "utf-8"
    of_tree = ("value", "key", "delete")  # first: what comes after may be no YAML, or a tree that grows without end
    for kind, number, value in sorted(set_canary(changes, place.canary), key=lambda change: change[0] not in of_tree):
        if kind in of_tree:
            text = _change_tree(text, kind, number, value)
        elif kind == "line twice":
            lines = text.splitlines(keepends=True)
            text = "".join(lines[: number % len(lines) + 1] + lines[number % len(lines) :])
        elif kind == "token":
            text = text[: number % len(text)] + value + text[number % len(text) :]
        elif kind == "bomb":
            rungs = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, number)]
            text = "\n".join(["a0: &a0 [x]", *rungs, text])
        else:
            text, encoding = f"# \u4e2d\u6587\n{text}", value
    path.write_bytes(text.encode(encoding, "replace"))
    trained = train(place, expid)
    if trained.code == 0:
        require_result(place)
    return [trained.code]


def _change_tree(text: str, kind: str, number: int, value: object) -> str:
    """Change the value or the key of a number among all of a YAML document; one that is no longer YAML stays."""
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    places: list[tuple] = []
    _collect(tree, places)
    if not places:
        return text
    owner, key = places[number % len(places)]
    if kind == "delete":
        del owner[key]
    elif kind == "key" and isinstance(owner, dict):
        owner[value] = owner.pop(key)
    elif not (key in ("epochs", "early_stop_patience") and isinstance(value, int | float)):
        owner[key] = value
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)


def _collect(node: object, places: list[tuple]) -> None:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        places.append((node, key))
        _collect(value, places)


ENCODERS = tuple(f'[{{name: item_tags, feature_encoder: "{code}"}}]' for code in CODE)
SETTINGS = {  # key: values that are right, that are nearly right, or that the experiment does not have
    "learning_rate": ("0.1", "1e-9", "0", "-1e-3", ".inf", "1e38", "1e-3 ", "0x1p-3"),
    "embedding_regularizer": ("0", "1e-6", "l1(1e-5)", "l2_reg(1e-4)", "l1_l2(1e-5,1e-5)", "-1", "l2(", "l1(x)"),
    "net_regularizer": ("0.01", "l1(0.1)", "[1e-3]", "l2(__import__('os').getpid())"),
    "optimizer": ("adam", "Adagrad", "SGD", "sgd", "Adam(lr=1)", "LBFGS", "SparseAdam"),
    "loss": ("binary_crossentropy", "bce", "mse", "os.abort"),
    "metrics": ("[AUC]", "[logloss]", "[AUC, AUC]", "[]", "AUC", "[gAUC, binary_crossentropy]", "[NDCG(k=1)]"),
    "monitor": ("AUC", "logloss", "gAUC", "{AUC: 1, logloss: -1}", "{}", "{AUC: 0}", "acc"),
    "monitor_mode": ("max", "min", "Max", "maximum", "auto"),
    "seed": ("0", "4294967295", "4294967296", "-1", "1.0"),
    "batch_size": ("1", "7", "1000000", "0", "1e2", "10000000000000000000"),
    "epochs": ("1", "2", "0", "1.5", "-1"),
    "max_len": ("1", "12", "13", "0", "100000", "10000000000000"),
    "embedding_dim": ("1", "3", "0", "8.0", "1000000000000000"),
    "net_dropout": ("0", "0.99", "1", "-0.1", "[0.1, 0.2]"),
    "batch_norm": ("True", "1", "yes"),
    "group_id": ("user_id", "item_id", "label", "likes_level", "nothing", "null"),
    "precision": ("fp32", "bf16", "fp16", "auto", "tf32", "fp64"),
    "lr_schedule": ("linear", "plateau", "none"),
    "ema_decay": ("0", "0.5", "1", "0.999999"),
    "accumulation_steps": ("1", "3", "1000", "0"),
    "eval_steps": ("1", "2", "1000", "0", "null"),
    "checkpoint_every": ("1", "0", "1000"),
    "max_gradient_norm": ("10", "0", ".inf", "-1"),
    "early_stop_patience": ("1", "0", "-1"),
    "shuffle": ("True", "False", "'no'"),
    "use_features": (
        "[item_id, item_tags, item_seq, user_id]",
        "[likes_level]",
        "[]",
        "[item_emb_d16]",
        "item_id",
        "[x]",
    ),
    "feature_specs": (
        "[{name: item_tags, feature_encoder: layers.MaskedSumPooling()}]",
        "[{name: x}]",
        "[1]",
        *ENCODERS,
    ),
    "feature_cols": ("[]", "[{name: item_id}]", "[{name: user_id, type: meta}]"),
    "label_col": ("{name: label, dtype: float}", "{name: user_id}", "label", "[{name: label}, {name: item_id}]"),
    "history_levels": ("True", "False"),
    "hidden_units": ("[4]", "[]", "[0]", "[4, 2.5]", "[10000000000000]"),
    "dnn_hidden_units": ("[4]", "[]"),
    "hidden_activations": ("ReLU", "[ReLU]", "dice", "__import__", "nn.ReLU()"),
    "history_pooling": ("mean", "target_attention", "max"),
    "bilinear_type": ("field_all", "field_each", "field_interaction", "all"),
    "similarity_fields": ("True",),
    "similarity_only": ("[item_emb_d16]", "[likes_level]"),
    "low_rank_fusion": ("[item_emb_d16]", "[item_tags]", "[nothing]"),
    "low_rank_fusion_ranks": ("1", "0"),
    "low_rank_fusion_heads": ("3", "0"),
    "item_info": ("/dev/null", "/nowhere.parquet", "."),
    "item_feature": ("null", "/nowhere.parquet"),
    "train_data": ("null", "/etc/passwd", "[a, b]"),
    "model": ("DIN", "DeepFM", "LR", "BaseModel", "__all__"),
    "dataset_id": ("TEST_DATA", "../TEST_DATA", "nothing"),
    "user_id_field": ("True",),
    "id_dropout": ("0.5", "1"),
    "batch_format": ("triple", "indices", "rows"),
    "num_workers": ("0", "2", "-1"),
    "verbose": ("1", "0"),
    "gpu": ("0", "-1"),
    "data_format": ("csv", "parquet"),
    "hiden_units": ("[4]",),
    "": ("1",),
    "a b": ("1",),
}
hostile_text = st.one_of(
    setting.map(
        lambda value: yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("\n...\n")
    ),
    st.sampled_from([*TEXTS, *CODE, *TOKENS, *ENCODERS]),
)
set_change = st.sampled_from(sorted(SETTINGS)).flatmap(
    lambda key: st.tuples(
        st.just(key),
        st.one_of(*[st.sampled_from(SETTINGS[key])] * 3, hostile_text if key != "epochs" else st.nothing()),
    )
)


def run_set(place: Place, base: Path, case: tuple) -> list[int]:
    """Settings on the command line: trained with finite metrics or refused."""
    expid, changes = case
    data_copy(place.given, base)
    texts = [
        f"{key}={value}".replace("\x00", "") for key, value in set_canary(changes, place.canary)
    ]  # argv ends at NUL
    trained = train(place, expid, *texts)
    if trained.code == 0:
        require_result(place)
    return [trained.code]


expid = st.sampled_from(EXPERIMENTS)
TARGETS = {
    "tables": Target(st.tuples(expid, st.sampled_from(FILES), table_changes), run_data, share=5),
    "parquet": Target(st.tuples(expid, st.sampled_from(FILES), byte_changes), run_data, share=3),
    "users": Target(
        st.tuples(st.sampled_from(["user_info", "user_info", "train"]), st.one_of(table_changes, byte_changes)),
        run_users,
    ),
    "yaml": Target(
        st.tuples(expid, st.sampled_from(["model", "dataset"]), st.lists(yaml_change, min_size=1, max_size=2)),
        run_yaml,
        share=5,
    ),
    "set": Target(st.tuples(expid, st.lists(set_change, min_size=1, max_size=2)), run_set, share=5),
    "checkpoint": Target(file_targets.checkpoint_cases, file_targets.run_checkpoint, share=3),
    "submission": Target(file_targets.submission_cases, file_targets.run_submission, share=3),
    "images": Target(build_targets.image_cases, build_targets.run_images, share=2),
    "archives": Target(build_targets.archive_cases, build_targets.run_archives, share=2),
    "texts": Target(build_targets.text_cases, build_targets.run_texts, share=2),
    "log": Target(log_targets.cases, log_targets.run_log, share=4),
    "store": Target(build_targets.store_cases, build_targets.run_store, share=2),
    "options": Target(item_targets.option_cases, item_targets.run_options, share=3),
    "report": Target(item_targets.report_cases, item_targets.run_report, share=2),
}
