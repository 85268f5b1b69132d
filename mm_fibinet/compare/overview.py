"""The runs of a --model_root at a glance: how they went, what they were made with, and which is best.

`run_benchmark.py` trains the runs it compares; here are those that `run_expid.py` has left, one by one, over several
sessions perhaps. Nothing is trained and no run is touched.
"""

import csv
import shutil
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mm_fibinet import run_manifest, run_result
from mm_fibinet.compare import jobs, leaderboard
from mm_fibinet.compare.leaderboard import Board, Outcome
from mm_fibinet.errors import UserError, printable
from mm_fibinet.files import atomic_path
from mm_fibinet.run_folder import RunFolder

INK, GRID = "#33312e", "#e5e1d8"


def find_runs(model_root: str | Path) -> list[RunFolder]:
    """The runs that have begun, by data set and name.

    Args:
        model_root: as `run_expid.py` was given.

    Raises:
        UserError: there is none.
    """
    manifests = sorted(Path(model_root).glob("*/*/manifest.json"))
    if not manifests:
        raise UserError(f"{model_root}: no runs there, expected DATASET/EXPID/manifest.json; train one first")
    return [RunFolder(path.parent.parent, path.parent.name) for path in manifests]


def described(run: RunFolder) -> str:
    """Which machine, versions, settings and bytes a run is of, from its manifest."""
    manifest = run_manifest.read_manifest(run)
    machine, versions = manifest.get("machine", {}), manifest.get("versions", {})
    driver = f"driver {machine['driver']}, CUDA {machine['cuda']}" if "driver" in machine else "no GPU"
    processes = machine.get("processes", 1)
    lines = {
        "run": run.folder,
        "started": f"{manifest.get('started')}, finished {manifest.get('finished', 'not yet')}",
        "device": f"{machine.get('device')}, {driver}, {processes} process{'es' * (processes > 1)}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "seed": manifest.get("seed"),
        "parameters": f"{manifest.get('parameters', 0):,}",
        "set": " ".join(manifest.get("set", [])) or "nothing beside the config",
    }
    for key, entry in manifest["data"].items():
        lines[key] = f"sha256 {entry['sha256'][:12]}, {entry['bytes']:,} bytes, {entry['path']}"
    return "\n".join(f"{label:<13} {printable(text)}" for label, text in lines.items())


def write_logs(runs: list[RunFolder], folder: str | Path) -> Path:
    """Gather what the runs have noted: each log, and metrics.csv, one line an evaluation of any run.

    Args:
        runs: of `find_runs`.
        folder: gets DATASET_EXPID.log and metrics.csv.

    Returns:
        the path of metrics.csv.
    """
    histories = {run: run.read_history() for run in runs}
    names = list(dict.fromkeys(name for lines in histories.values() for line in lines for name in line))
    table = Path(folder) / "metrics.csv"
    with atomic_path(table) as path, open(path, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ["dataset_id", "expid", *names])
        writer.writeheader()
        for run, lines in histories.items():
            place = {"dataset_id": printable(run.folder.parent.name), "expid": printable(run.folder.name)}
            writer.writerows({**place, **line} for line in lines)
    for run in runs:
        if run.log.is_file():
            with atomic_path(Path(folder) / f"{run.folder.parent.name}_{run.log.name}") as path:
                shutil.copyfile(run.log, path)
    return table


def draw_curves(runs: list[RunFolder], output: str | Path) -> Path:
    """Draw the training loss and the validation AUC of each run over its epochs.

    Args:
        runs: of `find_runs`; those without an evaluation are left out.
        output: the PNG.

    Returns:
        its path.
    """
    names = labels(runs)
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, column, title in zip(panels, ("loss", "AUC"), ("training loss", "AUC on valid"), strict=True):
        for run, name in zip(runs, names, strict=True):
            points = curve(run.read_history(), column)
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.8, label=name)
        panel.set_title(title, color=INK, fontsize=11)
        panel.set_xlabel("epoch")
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(color=GRID)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    if panels[1].lines:
        panels[1].legend(frameon=False, fontsize=9)
    with atomic_path(output) as path:
        figure.savefig(path, format="png", dpi=120)
    return Path(output)


def curve(history: list[dict[str, str]], column: str) -> list[tuple[float, float]]:
    """(epochs, value) of each evaluation that has the column.

    Steps become epochs by the most steps an epoch was seen to have, which is exact once an epoch has ended with an
    evaluation.
    """
    lines = [line for line in history if line.get(column)]
    steps = max((int(line["step"]) / int(line["epoch"]) for line in lines), default=1.0)
    return [(int(line["step"]) / steps, float(line[column])) for line in lines]


def board(runs: list[RunFolder], baseline: str | None = None) -> Board:
    """The leaderboard of these runs; those that have not finished are listed as such.

    Args:
        runs: of `find_runs`.
        baseline: the experiment the others are compared to; None for the first that has finished.
    """
    outcomes = []
    for run, name in zip(runs, labels(runs), strict=True):
        seed = int(run_manifest.read_manifest(run).get("seed", 0))
        result = run_result.read_result(run.folder)
        unfinished = Outcome(name, seed, None, None, "not finished: train it with --resume")
        outcomes.append(jobs.finished(name, seed, result, run.folder) if result else unfinished)
    first = next((outcome.expid for outcome in outcomes if outcome.result), outcomes[0].expid)
    return leaderboard.build(outcomes, baseline or first)


def labels(runs: list[RunFolder]) -> list[str]:
    """The experiment IDs, with the data set's name where two runs have the same."""
    times = Counter(run.folder.name for run in runs)
    return [
        f"{run.folder.name} ({run.folder.parent.name})" if times[run.folder.name] > 1 else run.folder.name
        for run in runs
    ]
