"""Install the wheel into environments that hold nothing else, and use there what must work there.

    .venv/bin/python tests/replicas/clean_install.py dist/*.whl --folder /tmp/clean

Run it by the Python of `make venv`, which exports a model for the scorer. *core* is the wheel and what pip brings with
it, no extra: loader, training and FuxiCTR's own model_zoo beside ours. *scorer* and *scorer_lowest* are the wheel,
numpy and onnxruntime alone, the newest and the lowest: scores are those of torch. Anything amiss ends it with code 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLACES = {  # what is installed beside the wheel; None: what the wheel requires
    "core": None,
    "scorer": ["numpy", "onnxruntime"],
    "scorer_lowest": ["numpy==1.26.0", "onnxruntime==1.18.0"],
}
CORE = """
import importlib.util

import model_zoo as theirs
import mm_fibinet
import mm_fibinet.model_zoo as ours
from mm_fibinet import dataloader, extras, feature_map, settings

params = settings.load_params(f"{mm_fibinet.__path__[0]}/config", "FiBiNET_demo", ours)
features = feature_map.build_feature_map(params)
train = dataloader.MMCTRDataLoader(features, params["train_data"], batch_format="indices", **params)
triple = next(iter(dataloader.MMCTRDataLoader(features, params["train_data"], **params)))
model = ours.FiBiNET(features, **params)
model.fit(train, epochs=1)
missing = [name for names in extras.EXTRAS.values() for name in names if not importlib.util.find_spec(name)]
print("mm_fibinet", mm_fibinet.__version__, "of", mm_fibinet.__path__[0])
print("FuxiCTR's model_zoo:", theirs.__path__[0])
print("the challenge's triple:", [type(part).__name__ for part in triple], "rows", len(triple[2]))
print("AUC on train:", round(model.evaluate(train)["AUC"], 3), "without", ", ".join(sorted(missing)))
"""
SCORER = """
import sys

import numpy as np
from mm_fibinet.scorer import Scorer

scorer, asked = Scorer("model"), np.load("asked.npz")
row = {name.removeprefix("row "): asked[name] for name in asked.files if name.startswith("row ")}
found = scorer.score(asked["history"], asked["candidates"], context=row)
difference = np.abs(found - asked["expected"]).max()
heavy = {"torch", "fuxictr", "ray", "pandas", "polars"} & sys.modules.keys()
print(f"{len(found)} scores, at most {difference:.1e} from torch's, {np.ptp(found):.2f} apart")
assert difference < 1e-5 < np.ptp(found) and not heavy
"""


def run(command: list[str | Path], cwd: Path) -> None:
    """Run one step aloud, away from the clone; a failure ends the script."""
    print("$", *(str(word) if "\n" not in str(word) else "..." for word in command), flush=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = subprocess.run(command, cwd=cwd, env=environment).returncode
    if code:
        sys.exit(f"exit code {code}")


def export(folder: Path) -> None:
    """Write a small exported model, a request and what torch makes of it."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import numpy as np
    import served_models

    model, table = served_models.make_model("FiBiNET recommended"), served_models.make_table()
    served_models.export(folder / "model", model)
    history, candidates = [5, 9, 13, 40, 2, 77], [3, 299, 9, 120, 8, 0]
    row = served_models.make_row(model, len(candidates))
    padded = [0] * (served_models.MAX_LEN - len(history)) + history
    expected = served_models.score_rows(model, table, padded, candidates, row)
    named = {f"row {name}": values for name, values in row.items()}
    np.savez(folder / "asked.npz", history=history, candidates=candidates, expected=expected, **named)


def install(place: Path, wheel: Path, beside: list[str] | None) -> Path:
    """Make an environment with the wheel: its Python."""
    python = place / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([sys.executable, "-m", "venv", place], place.parent)
    run([*pip, *(["--no-deps"] if beside is not None else []), wheel], place.parent)
    if beside:
        run([*pip, *beside], place.parent)
    else:
        run([python, "-m", "pip", "check"], place.parent)
    [packages] = (place / "lib").glob("python3*/site-packages")
    size = sum(path.lstat().st_size for path in packages.rglob("*") if "__pycache__" not in path.parts)
    print(f"{place.name}: {len(list(packages.glob('*.dist-info')))} packages, {size / 1e6:,.0f} MB", flush=True)
    return python


def main() -> None:
    """All places, or those asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="of the environments; made if need be")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    args = parser.parse_args()
    folder, wheel = args.folder.resolve(), args.wheel.resolve()
    work = folder / "elsewhere"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model").exists():
        export(work)
    for name in args.places:
        before = time.perf_counter()
        python = install(folder / name, wheel, PLACES[name])
        if name == "core":
            data = ["-m", "mm_fibinet.demo.data", "--size", "tiny", "--items", "150", "--no_images"]
            run([python, *data, "--random_embedding", "--output", "data/demo"], work)
            (work / "data/demo/embedded").mkdir(exist_ok=True)
            shutil.copy(work / "data/demo/MMCTR_demo/item_info.parquet", work / "data/demo/embedded")
        run([python, "-c", CORE if name == "core" else SCORER], work)
        print(f"{name}: {time.perf_counter() - before:,.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
