"""Several experiment IDs, or item embeddings, with several seeds to one leaderboard: CSV, Markdown and an HTML page."""

import argparse
import functools
from pathlib import Path

from mm_fibinet import files, settings
from mm_fibinet.commands import Home
from mm_fibinet.compare import alike, jobs, leaderboard, section, studies, task1, tuning
from mm_fibinet.compare.studies import retraining
from mm_fibinet.compare.studies.bench import Bench
from mm_fibinet.compare.tuning_space import FIELDS, FILE, Budget, Line, Space, read_space
from mm_fibinet.compare.workers import Workers
from mm_fibinet.errors import UserError, printable
from mm_fibinet.items.modalities import MODALITIES


def require_place(out: Path, config: str, runs: list[jobs.Job], studied: list[str]) -> None:
    """Refuse, before anything runs, an --out that is taken: by an input, or by a file where a folder is to be."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: this is a file, expected a folder for the leaderboard and the runs")
    for name in (jobs.FOLDER, tuning.FOLDER, retraining.FOLDER):
        if (out / name).is_file():
            raise UserError(
                f"--out {out}: its {name} is a file, expected nothing, or a folder of an earlier leaderboard"
            )
    inputs = {path for job in runs for path in job.inputs}
    names = [*(f"leaderboard.{kind}" for kind in leaderboard.KINDS), tuning.RESULTS]
    for name in [*names, *(f"{section.file_stem(study)}.csv" for study in studied)]:
        files.require_output(out / name, [config, *sorted(inputs)], option="--out")


def require_settings(args: argparse.Namespace) -> set[str]:
    """The names of what --set sets, of which none is another option's."""
    fixed = {change.partition("=")[0].strip() for change in args.set}
    if "seed" in fixed:
        raise UserError("--set seed: expected --seeds instead")
    if args.similarity and FIELDS in fixed:
        raise UserError(f"--set {FIELDS}: expected --similarity {args.similarity} alone, which sets it")
    return fixed


def require_switchable(lines: list[Line], fixed: set[str], similarity: str, space: Space) -> None:
    """Refuse to set what --similarity sets: the names of --set, `fixed`, beside the lines' own changes."""
    for line in lines:
        for key in fixed & line.changes.keys():
            raise UserError(
                f"--set {key}: --similarity {similarity} sets it for {line.name}, by {space.path}; leave it out, or "
                "name a file of your own with --tune_space"
            )


def find_space(args: argparse.Namespace, home: Home) -> Path:
    """The YAML of what --tune and --similarity change: the one that is named, the config folder's, or ours."""
    if args.tune_space:
        return Path(args.tune_space)
    places = [Path(folder) / FILE for folder in (args.config, home.config)]
    return next((path for path in places if path.is_file()), places[0])


def run(args: argparse.Namespace, home: Home) -> int:
    """Tune where that is asked for, run, then report; exit code 1 when a run failed."""
    budget = None if args.tune is None else Budget.read(args.tune)
    variants = None
    if args.task1:
        task1.require_open(args.set)
        variants = task1.variants(task1.name_files(args.task1))
        expids = [task1.EXPID]
    else:
        expids = args.expids or jobs.find_suite(args.config, args.suite)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: expected at least 1")
    fixed = require_settings(args)
    devices = list(dict.fromkeys(args.gpus or [jobs.CPU])) * args.workers
    for gpu in devices:
        settings.require_device(gpu)

    out, models = Path(args.out), home.import_models(args.models_from)
    plan = functools.partial(
        jobs.plan, args.config, models=models, overrides=args.set, data_root=args.data_root, fingerprints={}
    )
    runs = plan(expids, args.seeds, out=out, variants=variants)
    space, lines = None, [Line(name) for name in variants or expids]
    if budget or args.similarity:
        space = read_space(find_space(args, home), models)
        lines = alike.find_lines(space, runs, models, args.similarity)
        if args.similarity:
            require_switchable(lines, fixed, args.similarity, space)
            fixed |= space.switched
    unread = alike.require_read(runs, models, settings.parse_overrides(args.set), space if budget else None)
    names = [line.name for line in lines]
    baseline = args.baseline or names[0]
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: not among the experiments that are run: {', '.join(names)}")
    require_place(out, args.config, runs, args.study)
    studies.require(args.study, runs)
    print("".join(f"{printable(line)}\n" for line in unread), end="")

    plain = [*home.train, "--config", args.config]
    plain += ["--data_root", args.data_root] if args.data_root else []
    plain += ["--models_from", args.models_from] if args.models_from else []
    command = [*plain, "--set", *args.set] if args.set else plain
    with jobs.locked(out) as lock, Workers(home.train, lock) as workers:
        if space:
            tunings = alike.plan_tuning(lines, space, budget, models, fixed, args.seeds, plan, out) if budget else []
            tuning.run_all(tunings, command, devices, lock, workers, out)
            runs = alike.plan_lines(lines, tunings, args.seeds, plan, out)
        kept = workers if args.gpus else None  # peak memory is told of CPU runs
        jobs.run_all(runs, command, devices, lock, kept)
        board = leaderboard.build([job.outcome() for job in runs], baseline)
        if budget:
            board.facts["Tuning"] = f"{budget.shown(bool(args.gpus))}, on valid"
        if args.task1:
            board.facts["Model"] = f"{task1.EXPID} on each item_info, as task 1 is judged"
        if args.study:
            leaderboard.write(board, out)  # studies may train for hours
        anew = retraining.Retraining(args.config, args.set, args.data_root, models, out, plain, devices, lock, kept)
        prefixes = {modality.name: modality.prefix for modality in MODALITIES}
        board.sections = studies.study(args.study, Bench(runs, baseline, out, devices[0], prefixes, anew))
    written = leaderboard.write(board, out)
    print(leaderboard.as_text(board))
    width = max(map(len, written)) + 2
    print("\n".join(f"{what:<{width}}{printable(path)}" for what, path in written.items()))
    return 1 if any(job.error for job in runs) or any(study.failed for study in board.sections) else 0
