"""Write a trained experiment as a folder that scores without torch: a graph, the items' rows and a card.

Settings and weights are found as prediction finds them: those of the run's manifest, or the config's for weights that
--checkpoint names and that have no run.
"""

import argparse
import importlib
import json
from importlib.metadata import version

import torch

import mm_fibinet
from mm_fibinet import files, onnx_export, run_manifest, served_files
from mm_fibinet.commands import Home
from mm_fibinet.commands.predict import Scorer
from mm_fibinet.commands.train import own_item_table
from mm_fibinet.errors import UserError, printable
from mm_fibinet.files import atomic_folder, require_output_folder
from mm_fibinet.parquet_reader import exists, list_width
from mm_fibinet.run_folder import RunFolder
from mm_fibinet.schema import ITEM_ID, ITEM_SEQ
from mm_fibinet.served_files import Card
from mm_fibinet.user_info import user_lengths

PLACES = {*run_manifest.DATA_FILES, "data_root", "model_root"}  # settings that say where, and are nobody else's


def run(args: argparse.Namespace, home: Home) -> None:
    """Read everything, then write."""
    onnx_export.require_libraries(args.format)
    args.config_given, args.config = args.config is not None, args.config or str(home.config)
    found = Scorer.of(args, home, -1)
    out = require_output_folder(args.out, found.reads(), served_files.FILES)
    models = importlib.import_module(f"{home.models}.served")
    model, feature_map = found.model()
    served = models.served(model.eval())
    table = own_item_table(found.params, model, feature_map)
    if table is None:
        raise UserError(f"dataset {found.params['dataset_id']} has no item_info, so that there are no items to encode")
    encoder, added = models.ItemEncoder(model), models.NewItemEncoder(model)
    specs, items = feature_map.features, model.item_side_features()
    card = Card(
        model=found.params["model"],
        expid=found.params["model_id"],
        dataset_id=found.params["dataset_id"],
        item_table=args.item_table,
        num_items=table.num_items,
        parts=served.parts,
        of_content=encoder.of_content,
        ids=served.ids,
        row_features={name: specs[name] for name in served.row_features},
        item_features={name: items[name] for name in items if name != ITEM_ID},
        max_len=int(found.params["max_len"]),
        min_len=served.min_len,
        padded_len=padded_len(found.params) if served.reads_padding else 0,
        pairs_at_once=served.pairs_at_once,
        files={},
        about=about(found),
    )
    with atomic_folder(out) as folder:
        onnx_export.write_model(folder, served, encoder, added, table, card, args.format)
    for path in sorted(out.iterdir()):
        print(printable(f"{path.name:<18} {path.stat().st_size:>13,} bytes"))
    print(printable(f"exported    {out}"))


def padded_len(params: dict) -> int:
    """Positions of a history in the data that were trained on, as the loader makes them."""
    max_len, users, train = int(params["max_len"]), params.get("user_info"), params.get("train_data")
    if users:
        return min(max_len, max(int(user_lengths(users, None).max()), 1)) if exists(users) else max_len
    return min(max_len, list_width(train, ITEM_SEQ)) if train and exists(train) else max_len


def about(found: Scorer) -> dict:
    """What the card says to people: metrics, data and hashes, settings, versions."""
    manifest = run_manifest.read_manifest(found.run) if found.run else {}
    data = manifest.get("data") or run_manifest.data_fingerprint(found.params)
    packages = {"torch": torch.__version__, **{name: version(name) for name in ("onnx", "onnxscript")}}
    return {
        "metrics": metrics(found.run) if found.run else {},
        "weights": {"sha256": files.sha256(found.weights)},
        "data": {
            key: {name: entry[name] for name in ("bytes", "sha256") if name in entry} for key, entry in data.items()
        },
        "settings": {key: value for key, value in sorted(found.params.items()) if key not in PLACES},
        "trained_with": manifest.get("versions", {}),
        "exported_with": {"mm-fibinet": mm_fibinet.__version__, "opset": onnx_export.OPSET, **packages},
    }


def metrics(run: RunFolder) -> dict[str, float]:
    """{metric: value} on valid; none of a run that has not finished."""
    if not run.result.is_file():
        return {}
    return json.loads(run.result.read_text(encoding="utf-8"))["metrics"]
