"""How long a request waits for its scores: `python benchmarks/latency.py`.

One user and C candidates, on one core, in four forms of the same model and weights: rows as FuxiCTR scores them (each
with the whole history, every occurrence of an item embedded anew), our eager model (items embedded once), and the
exported model with an fp32 and an int8 table. The forms run in turns, so that a machine that slows down slows all; all
give the same scores, which is checked first. Weights and items are random: they change no time. Times are those of the
core (`time.process_time`), which on an idle machine is the time that passes, and on a shared one still says something.
"""

# ruff: noqa: E402 (threads are fixed before torch is imported, and the repository must be first on sys.path)

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # before site-packages, where FuxiCTR's wheel has a model_zoo of its own

import numpy as np
import torch
from torch import nn

import model_zoo
from benchmarks import reference
from benchmarks.contenders import OFFICIAL
from benchmarks.synthetic import NUM_LEVELS, NUM_TAGS, TAG_WIDTH, Sizes, feature_map
from mm_fibinet import onnx_export
from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.item_table import ItemTable
from mm_fibinet.scorer import Scorer
from mm_fibinet.served_files import GRAPH, Card, ItemRows
from mm_fibinet.settings import load_model_config
from model_zoo import served

RECOMMENDED = "FiBiNET_recommended"
MODELS = (RECOMMENDED, *OFFICIAL)
FORMS = ("rows", "eager", "onnx fp32", "onnx int8")
LENGTHS, CANDIDATES = (64, 1000), (100, 1200)
ITEMS = 91_718
POSITIONS_AT_ONCE = 65_536  # of rows, as a batch of 1,000 histories of 64
MOST_REPEATS, SECONDS = 200, 20.0  # a form and request
TURN = 250  # milliseconds


@dataclass(frozen=True)
class Contest:
    """One model in all forms.

    Attributes:
        name: one of MODELS.
        model: ours.
        rows: what scores rows; ours, given rows, where FuxiCTR's layers have no such model.
        table: the items.
    """

    name: str
    model: nn.Module
    rows: nn.Module
    table: ItemTable


def make_contest(name: str, items: int = ITEMS, emb_dim: int = 128) -> Contest:
    """The model with random weights, and random items."""
    torch.manual_seed(0)
    features = feature_map(Sizes(items=items, emb_dim=emb_dim))
    settings = dict(OFFICIAL.get(name, {}))
    if name == RECOMMENDED:
        experiment = load_model_config(ROOT / "config", name)
        keys = ("embedding_dim", "hidden_units", "feature_norm", "senet_plus", "bilinear_plus", "history_levels")
        keys += ("similarity_fields", "similarity_to_mlp")
        keys += ("low_rank_fusion", "low_rank_fusion_heads", "low_rank_fusion_ranks")
        settings = {key: experiment[key] for key in keys}
        columns = ("txt_emb_d128", "img_emb_d128")
        features.features.update({column: dict(features.features[f"item_emb_d{emb_dim}"]) for column in columns})
        settings["similarity_only"] = [f"item_emb_d{emb_dim}", *columns]
    zoo_class = model_zoo.FiBiNET if name == RECOMMENDED else getattr(model_zoo, name)
    model = zoo_class(features, **settings).eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Embedding):
                layer.weight[1:].normal_(std=0.1)
    rows = model
    if name != RECOMMENDED:
        rows = getattr(reference, f"Stock{name}")(features, **settings)
        rows.load_state_dict(model.state_dict())
    return Contest(name, model, rows.eval(), make_table(model, items))


def make_table(model: nn.Module, items: int) -> ItemTable:
    """Random items."""
    rng, columns = np.random.default_rng(0), {}
    for name, spec in model.item_side_features().items():
        if name == "item_id":
            values = np.arange(items, dtype=np.int32)
        elif spec["type"] == "embedding":
            values = rng.standard_normal((items, spec["pretrain_dim"]), dtype=np.float32)
        else:
            size, width = (NUM_TAGS, (items, TAG_WIDTH)) if spec["type"] == "sequence" else (NUM_LEVELS, items)
            values = rng.integers(0, size, width, dtype=np.int32)
        values[0] = 0
        columns[name] = torch.from_numpy(values)
    return ItemTable(columns)


def export(contest: Contest, folder: Path, max_len: int) -> dict[str, Path]:
    """{item table: folder} of the exported model; one graph with two tables."""
    module, features = served.served(contest.model), contest.model.feature_map.features
    encoder = served.ItemEncoder(contest.model)
    card = Card(
        model=contest.name, expid=contest.name, dataset_id="latency", item_table="fp32",
        num_items=contest.table.num_items, parts=module.parts, of_content=encoder.of_content, ids=module.ids,
        row_features={name: features[name] for name in module.row_features}, item_features={}, max_len=max_len,
        min_len=module.min_len, padded_len=0, pairs_at_once=module.pairs_at_once, files={}, about={},
    )  # fmt: skip
    folders = {kind: folder / kind for kind in ("fp32", "int8")}
    for made in folders.values():
        made.mkdir()
    onnx_export.write_model(folders["fp32"], module, encoder, None, contest.table, card)
    rows = ItemRows.read(folders["fp32"], card)
    ItemRows.pack(np.array(rows.values), rows.ids, card.parts, "int8").write(folders["int8"])
    shutil.copyfile(folders["fp32"] / GRAPH, folders["int8"] / GRAPH)
    replace(card, item_table="int8").write(folders["int8"])
    return folders


def forms_of(contest: Contest, scorers: dict[str, Scorer], length: int, count: int) -> dict[str, Callable]:
    """{form: a function that scores one request}; the request is the same for all."""
    rng = np.random.default_rng(length + count)
    history, candidates = (rng.integers(1, contest.table.num_items, size) for size in (length, count))
    levels = {name: rng.integers(1, NUM_LEVELS, count) for name in contest.model.user_features}
    row = {name: torch.from_numpy(values) for name, values in levels.items()}
    index = torch.from_numpy(np.concatenate([np.tile(history, (count, 1)), candidates[:, None]], axis=1)).int()

    def rows() -> np.ndarray:
        step, found = max(POSITIONS_AT_ONCE // (length + 1), 1), []
        for part in range(0, count, step):
            batch = {name: values[part : part + step] for name, values in row.items()}
            triple = IndexBatch(batch, index[part : part + step], contest.table).triple()
            found.append(contest.rows(triple)["y_pred"].flatten())
        return torch.cat(found).numpy()

    return {
        "rows": rows,
        "eager": lambda: contest.model(IndexBatch(row, index, contest.table))["y_pred"].flatten().numpy(),
        **{f"onnx {kind}": lambda s=s: s.score(history, candidates, context=levels) for kind, s in scorers.items()},
    }


@torch.inference_mode()
def in_turns(forms: dict[str, Callable], seconds: float, most: int) -> dict[str, list[float]]:
    """Milliseconds that each form's calls take, in turns of TURN or one call; the scores are compared before."""
    scores = {form: call() for form, call in forms.items()}
    for form, found in scores.items():
        difference = np.abs(found - scores["rows"]).max()
        if difference > (0.05 if form.endswith("int8") else 1e-4):
            raise AssertionError(f"{form} differs from rows by {difference}")
    times: dict[str, list[float]] = {form: [] for form in forms}
    while waiting := [form for form in forms if sum(times[form]) < 1000 * seconds and len(times[form]) < most]:
        for form in waiting:
            turn = len(times[form])
            while sum(times[form][turn:]) < TURN and len(times[form]) < most:
                before = time.process_time()
                forms[form]()
                times[form].append(1000 * (time.process_time() - before))
    return times


def memory_mb(folder: Path | None) -> float:
    """The most memory of a process that scores a request with the exported model; without one, that of its import."""
    code = "import model_zoo"
    if folder:
        code = (
            "import sys; from mm_fibinet.scorer import Scorer; scorer = Scorer(sys.argv[1]); "
            "scorer.score([1, 2, 3, 4], range(1, 1201), user=dict.fromkeys(scorer.card.row_features, 1))"
        )
    code += "; print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *([str(folder)] if folder else [])]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout) / 1000


def users_per_second(scorer: Scorer, length: int, count: int, seconds: float) -> float:
    """Requests that two threads score, each on a core."""
    rng = np.random.default_rng(0)
    requests = [rng.integers(1, scorer.card.num_items, length + count) for _ in range(50)]
    row = dict.fromkeys(scorer.card.row_features, 1)
    until = time.perf_counter() + seconds

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() < until:
            ids = requests[done % len(requests)]
            scorer.score(ids[:length], ids[length:], user=row)
            done += 1
        return done

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(work, range(2))) / seconds


def measure(name: str, lengths: tuple[int, ...], counts: tuple[int, ...], seconds: float, items: int) -> dict:
    """All figures of a model."""
    contest, found = make_contest(name, items), {"model": name, "requests": []}
    with tempfile.TemporaryDirectory() as place:
        folders = export(contest, Path(place), max(lengths))
        scorers = {kind: Scorer(folder) for kind, folder in folders.items()}
        for length in lengths:
            for count in counts:
                times = in_turns(forms_of(contest, scorers, length, count), seconds, MOST_REPEATS)
                for form, own in times.items():
                    p50, p99 = np.percentile(own, [50, 99])
                    ratio = np.median(times["rows"]) / p50
                    entry = {"positions": length, "candidates": count, "form": form, "p50": p50, "p99": p99}
                    found["requests"].append({**entry, "times": ratio, "repeats": len(own)})
                    shown = f"{p50:,.2f} | {p99:,.2f} | {ratio:,.1f} | {len(own)}"
                    print(f"| {name} | {length:,} | {count:,} | {form} | {shown} |", flush=True)
        for kind, folder in folders.items():
            found[f"{kind} MB on disk"] = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            found[f"{kind} MB in memory"] = memory_mb(folder)
            found[f"{kind} users/s, 2 cores"] = users_per_second(scorers[kind], lengths[0], counts[0], min(seconds, 5))
        found["torch and models MB in memory"] = memory_mb(None)
    for what, value in found.items():
        if isinstance(value, float):
            print(f"{name}: {what}: {value:,.1f}")
    return found


def main() -> None:
    """Print a table, a line a form."""
    parser = argparse.ArgumentParser(description="How long a request waits for its scores, on one core.")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), help="history positions")
    parser.add_argument("--candidates", nargs="+", type=int, default=list(CANDIDATES))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="a form and request (default: %(default)s)")
    parser.add_argument("--items", type=int, default=ITEMS, help="of the catalogue (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | positions | candidates | form | p50 ms | p99 ms | times | repeats |")
    print("|---|---|---|---|---|---|---|---|")
    sizes = tuple(args.lengths), tuple(args.candidates)
    found = [measure(name, *sizes, args.seconds, args.items) for name in args.models]
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
