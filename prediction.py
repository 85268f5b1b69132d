"""Score the test split with a trained experiment and write the challenge's submission zip.

python prediction.py --config config/ --expid FiBiNET_demo --gpu -1
"""

import argparse
from pathlib import Path

import model_zoo
from mm_fibinet import distributed, run_folder, schema, settings, submission
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.feature_map import build_feature_map
from run_expid import add_experiment_arguments, load_params


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score the test split and write a submission zip.")
    add_experiment_arguments(parser)
    parser.add_argument("--checkpoint", help="weights to load (default: the experiment's best)")
    parser.add_argument("--test", help="test split (default: test_data of the dataset config)")
    parser.add_argument("--out", help="the zip (default: submission/EXPID.zip)")
    parser.add_argument("--task", default="Task1&2", choices=submission.TASKS, help="name of the score column")
    return parser.parse_args()


def main() -> None:
    """Score, validate, write."""
    args = parse_arguments()
    params = load_params(args)
    test = args.test or params.get("test_data")
    if not test:
        raise UserError(f"dataset {params['dataset_id']} has no test_data; name a file with --test")
    num_rows = len(schema.read_test_ids(test))
    world = distributed.start(params["gpu"])
    run = run_folder.RunFolder(params)
    feature_map = build_feature_map(params)

    model = settings.find_model(model_zoo, params["model"])(feature_map, **params)
    model.precision = params.get("precision", "fp32")  # as its validation was scored
    model.load_weights(args.checkpoint or run.weights)
    loader_params = {**params, "shuffle": False, "batch_format": params.get("batch_format", "indices")}
    scores = model.predict(MMCTRDataLoader(feature_map, test, split="test", **loader_params))
    if world.is_main:
        out = submission.write_submission(
            scores, args.out or Path("submission") / f"{args.expid}.zip", num_rows, args.task
        )
        print(submission.check_submission(out, test))
    distributed.stop()


if __name__ == "__main__":
    run_cli(main)
