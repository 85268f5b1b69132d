"""Run several experiment IDs with several seeds and write one leaderboard: CSV, Markdown and a single HTML page.

python run_benchmark.py --suite demo
python run_benchmark.py --expids DIN_demo FiBiNET_demo --seeds 2025 2026 2027 --workers 2
"""

import argparse
import sys
from pathlib import Path

import model_zoo
from mm_fibinet import files, settings
from mm_fibinet.compare import jobs, leaderboard
from mm_fibinet.errors import UserError, printable, run_cli


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    folder = Path(__file__).resolve().parent / "config"
    parser = argparse.ArgumentParser(description="Run several experiments and write one leaderboard.")
    parser.add_argument("--config", default=str(folder), help="config folder (default: the one beside this script)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--expids", nargs="+", metavar="EXPID", help="experiment IDs of the config")
    what.add_argument("--suite", help=f"a list of experiment IDs by its name in {jobs.SUITES}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[2025], help="each experiment runs once with each seed")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", nargs="+", type=int, help="GPU indices, one run at a time on each")
    where.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time on the CPU (default: 1)")
    parser.add_argument("--out", default="leaderboard", help="folder of the leaderboard and the runs")
    parser.add_argument("--baseline", metavar="EXPID", help="what the others are compared to (default: the first)")
    parser.add_argument("--data_root", help="replaces data_root of the dataset config, also in its files' paths")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change settings of all experiments"
    )
    return parser.parse_args()


def require_place(out: Path, config: str, runs: list[jobs.Job]) -> None:
    """Refuse, before anything runs, an --out where the leaderboard would be written over an input."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: this is a file, expected a folder for the leaderboard and the runs")
    inputs = {job.params.get(key) for job in runs if job.params for key in settings.DATA_FILES}
    for kind in leaderboard.KINDS:
        files.require_output(out / f"leaderboard.{kind}", [config, *sorted(filter(None, inputs))], option="--out")


def main() -> int:
    """Run, then report; exit code 1 when a run failed."""
    args = parse_arguments()
    expids = args.expids or jobs.find_suite(args.config, args.suite)
    baseline = args.baseline or expids[0]
    if baseline not in expids:
        raise UserError(f"--baseline {baseline}: not among the experiments that are run: {', '.join(expids)}")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: expected at least 1")
    if any(change.partition("=")[0].strip() == "seed" for change in args.set):
        raise UserError("--set seed: expected --seeds instead")
    devices = list(dict.fromkeys(args.gpus)) if args.gpus else [jobs.CPU] * args.workers
    for gpu in devices:
        settings.require_device(gpu)

    out = Path(args.out)
    runs = jobs.plan(args.config, expids, args.seeds, model_zoo, out, args.set, args.data_root)
    require_place(out, args.config, runs)
    command = [sys.executable, str(Path(__file__).resolve().parent / "run_expid.py"), "--config", args.config]
    command += ["--data_root", args.data_root] if args.data_root else []
    command += ["--set", *args.set] if args.set else []
    with jobs.locked(out) as lock:
        jobs.run_all(runs, command, devices, lock)

    board = leaderboard.build([job.outcome() for job in runs], baseline)
    written = leaderboard.write(board, out)
    print(leaderboard.as_text(board))
    print("\n".join(f"{what:<12}{printable(path)}" for what, path in written.items()))
    return 1 if any(job.error for job in runs) else 0


if __name__ == "__main__":
    run_cli(main)
