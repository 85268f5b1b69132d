"""Several experiment IDs, or item embeddings, with several seeds to one leaderboard: CSV, Markdown and an HTML page."""

import argparse
from pathlib import Path

from mm_fibinet import files, settings
from mm_fibinet.commands import Home
from mm_fibinet.compare import jobs, leaderboard, section, studies, task1
from mm_fibinet.compare.studies.bench import Bench
from mm_fibinet.compare.studies.retraining import Retraining
from mm_fibinet.compare.workers import Workers
from mm_fibinet.errors import UserError, printable
from mm_fibinet.items.modalities import MODALITIES


def require_place(out: Path, config: str, runs: list[jobs.Job], studied: list[str]) -> None:
    """Refuse, before anything runs, an --out where the leaderboard would be written over an input."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: this is a file, expected a folder for the leaderboard and the runs")
    inputs = {path for job in runs for path in job.inputs}
    names = [f"leaderboard.{kind}" for kind in leaderboard.KINDS]
    for name in [*names, *(f"{section.file_stem(study)}.csv" for study in studied)]:
        files.require_output(out / name, [config, *sorted(inputs)], option="--out")


def run(args: argparse.Namespace, home: Home) -> int:
    """Run, then report; exit code 1 when a run failed."""
    variants = None
    if args.task1:
        task1.require_open(args.set)
        variants = task1.variants(task1.name_files(args.task1))
        expids, names = [task1.EXPID], list(variants)
    else:
        expids = names = args.expids or jobs.find_suite(args.config, args.suite)
    baseline = args.baseline or names[0]
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: not among the experiments that are run: {', '.join(names)}")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: expected at least 1")
    if any(change.partition("=")[0].strip() == "seed" for change in args.set):
        raise UserError("--set seed: expected --seeds instead")
    devices = list(dict.fromkeys(args.gpus or [jobs.CPU])) * args.workers
    for gpu in devices:
        settings.require_device(gpu)

    out = Path(args.out)
    models = home.import_models(args.models_from)
    runs = jobs.plan(args.config, expids, args.seeds, models, out, args.set, args.data_root, variants)
    require_place(out, args.config, runs, args.study)
    studies.require(args.study, runs)
    command = [*home.train, "--config", args.config]
    command += ["--data_root", args.data_root] if args.data_root else []
    command += ["--models_from", args.models_from] if args.models_from else []
    with jobs.locked(out) as lock, Workers(home.train, lock) as workers:
        kept = workers if args.gpus else None  # peak memory is told of CPU runs
        jobs.run_all(runs, [*command, "--set", *args.set] if args.set else command, devices, lock, kept)
        board = leaderboard.build([job.outcome() for job in runs], baseline)
        retraining = Retraining(args.config, args.set, args.data_root, models, out, command, devices, lock, kept)
        prefixes = {modality.name: modality.prefix for modality in MODALITIES}
        board.sections = studies.study(args.study, Bench(runs, baseline, out, devices[0], prefixes, retraining))
    if args.task1:
        board.facts["Model"] = f"{task1.EXPID} on each item_info, as task 1 is judged"
    written = leaderboard.write(board, out)
    print(leaderboard.as_text(board))
    width = max(map(len, written)) + 2
    print("\n".join(f"{what:<{width}}{printable(path)}" for what, path in written.items()))
    return 1 if any(job.error for job in runs) or any(study.failed for study in board.sections) else 0
