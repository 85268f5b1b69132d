"""Train and evaluate one experiment ID (challenge task 2), with FuxiCTR's command line.

python run_expid.py --config config/ --expid FiBiNET_demo --gpu -1
"""

import argparse
import logging
import os
from pathlib import Path

from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from mm_fibinet import distributed, run_folder, run_result, settings
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import run_cli
from mm_fibinet.event_files import EventFiles
from mm_fibinet.feature_map import build_feature_map, save_feature_map
from mm_fibinet.item_table import item_side_features, load_item_table
from mm_fibinet.training import Trainer


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train and evaluate one experiment ID.")
    add_experiment_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    parser.add_argument("--checkpoint_every", type=int, metavar="N", help="save the run's state every N steps as well")
    return parser.parse_args()


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every script on an experiment takes."""
    folder = Path(__file__).resolve().parent / "config"
    parser.add_argument("--config", default=str(folder), help="config folder (default: the one beside this script)")
    parser.add_argument("--expid", required=True, help="experiment ID of the config")
    parser.add_argument("--gpu", type=int, default=-1, help="GPU index, -1 for CPU (default)")
    parser.add_argument("--data_root", help="replaces data_root of the dataset config, also in its files' paths")
    parser.add_argument("--model_root", help="where runs are kept (default: model_root of the config)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change settings of the experiment"
    )


def load_params(args: argparse.Namespace) -> dict:
    """The experiment's merged settings; the device is checked."""
    gpu = int(os.environ.get("LOCAL_RANK", args.gpu)) if args.gpu >= 0 else -1
    settings.require_device(gpu)
    return settings.load_params(args.config, args.expid, model_zoo, args.set, args.data_root, args.model_root, gpu)


def main() -> None:
    """Train, evaluate, and say where the files are."""
    args = parse_arguments()
    params = load_params(args)
    world = distributed.start(params["gpu"])
    run = run_folder.RunFolder(params).make()
    run_folder.start_log(run.log, append=args.resume, quiet=not world.is_main)
    feature_map = build_feature_map(params)
    data = run_folder.data_fingerprint(params)
    seed_everything(params["seed"])

    features = item_side_features(feature_map.features, params.get("history_levels", False))
    table = load_item_table(params["item_info"], features, params.get("item_feature"))
    loader_params = {**params, "item_info": table, "batch_format": params.get("batch_format", "indices")}
    train_data = MMCTRDataLoader(
        feature_map, params["train_data"], split="train", rank=world.rank, world_size=world.size, **loader_params
    )
    valid_data = MMCTRDataLoader(
        feature_map, params["valid_data"], split="valid", **{**loader_params, "shuffle": False}
    )
    logging.info("Train samples: %d, validation samples: %d", train_data.num_samples, valid_data.num_samples)

    model = settings.find_model(model_zoo, params["model"])(feature_map, **params)
    model.checkpoint = str(run.weights)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logging.info("Total number of parameters: %d.", parameters)
    if world.is_main:
        save_feature_map(feature_map, run.folder / "feature_map.json")
        run_folder.write_manifest(run, params, feature_map, data, parameters)

    checkpoints = RunCheckpoints(run.folder, run_folder.run_fingerprint(params, data))
    if not args.resume and world.is_main:
        checkpoints.clear()
    options = {**params, "checkpoint_every": args.checkpoint_every or params.get("checkpoint_every")}
    observers = [run_result.note_memory, run.write_history]
    if params.get("tensorboard"):
        observers.append(EventFiles(run.folder / "tensorboard"))

    def on_evaluation(history: list[dict]) -> None:
        for observe in observers:
            observe(history)

    trainer = Trainer(model, checkpoints=checkpoints, on_evaluation=on_evaluation, **options)
    history = trainer.fit(train_data, valid_data, epochs=params["epochs"], resume=args.resume)

    logging.info("****** Validation evaluation ******")
    scores = model.predict(valid_data)
    if world.is_main:
        result = run_result.write_result(run, params, data, model, history, train_data, valid_data, scores)
        logging.info("[Metrics] %s", " - ".join(f"{name}: {value:.6f}" for name, value in result.items()))
        results = Path(params["model_root"]) / f"{Path(args.config).resolve().name}.csv"
        run_folder.append_result(results, params, result)
        print(f"best weights  {run.weights}\nrun folder    {run.folder}\nresults       {results}")
    distributed.stop()


if __name__ == "__main__":
    run_cli(main)
