"""Score the test split with trained experiments and write the challenge's submission, as a zip, a CSV or both.

The settings are those of the run's manifest, so nothing of the training's command line need be repeated; what is given
again must agree, and the items' files must be those trained on. Weights from elsewhere have no manifest: named with
--checkpoint, they take the config's settings. --average writes what several runs say together.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import torch
from fuxictr.features import FeatureMap
from torch import nn

from mm_fibinet import any_model, distributed, model_source, run_manifest, schema, settings, submission
from mm_fibinet.checkpoint import load_weights
from mm_fibinet.commands import Home
from mm_fibinet.commands.train import checked_gpu, own_item_table
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError, printable
from mm_fibinet.feature_map import build_feature_map, label_names, load_feature_map
from mm_fibinet.labelled import KnownLabels
from mm_fibinet.memory import keep_freed_memory
from mm_fibinet.metrics import METRICS
from mm_fibinet.names import LISTED_BY, expected_one_of
from mm_fibinet.parquet_reader import part_files
from mm_fibinet.precision import Precision
from mm_fibinet.prepare import originals
from mm_fibinet.run_folder import RunFolder
from mm_fibinet.scoring import predict


@dataclass(frozen=True)
class Scorer:
    """What scores the test split: weights and their settings.

    Attributes:
        run: the run that they are of; None for weights without a manifest.
        models: the namespace of the model's class.
        params: of `load_params`.
        weights: the file.
    """

    run: RunFolder | None
    models: ModuleType
    params: dict
    weights: Path

    @classmethod
    def of(cls, args: argparse.Namespace, home: Home, gpu: int) -> "Scorer":
        """The run or the weights that a command line names.

        Raises:
            UserError: there are none, or they are not what the settings say.
        """
        models = home.import_models(args.models_from)
        trained = find_run(args, models)
        models = models_of(trained, args, home) or models
        params = run_params(args, models, trained, gpu) if trained else config_params(args, models, gpu)
        weights = Path(args.checkpoint or (trained or RunFolder.of(params)).weights)
        if not (args.checkpoint or trained or weights.exists()):
            raise UserError(
                f"--expid {args.expid}: there is no run of it, expected {weights} (--model_root names another folder); "
                f"train it first, with run_expid.py --expid {args.expid}"
            )
        return cls(trained, models, params, weights)

    def test_split(self, given: str | None) -> str:
        """The file to score."""
        test = given or self.params.get("test_data")
        if not test:
            raise UserError(f"dataset {self.params['dataset_id']} has no test_data; name a file with --test")
        return test

    def reads(self) -> list:
        """The files that are read beside the test split; None for what there is not."""
        return [*(self.params.get(key) for key in ("item_info", "item_feature", "user_info")), self.weights]

    def model(self) -> tuple[nn.Module, FeatureMap]:
        """The model with its weights, and the feature map that it was made for."""
        trained, params = self.run, self.params
        feature_map = load_feature_map(trained.feature_map, params) if trained else build_feature_map(params)
        model_class = settings.find_model(self.models, params["model"])
        model = any_model.make_model(model_class, feature_map, params)
        load_weights(model, self.weights)
        return model, feature_map

    def scores(self, test: str, world: distributed.World, config: str) -> np.ndarray:
        """Click probabilities, float64 [N], in the file's order, on the main rank; its progress is printed there."""
        trained, params = self.run, self.params
        if world.is_main:
            source = trained.manifest if trained else f"{config}: {self.weights} has no run manifest beside it"
            print(f"settings    {printable(source)}")
            if trained and not trained.result.exists():
                print("note        the run has not finished: its best weights so far are used")
        model, feature_map = self.model()
        table = own_item_table(params, model, feature_map)
        loader_params = {**params, "item_info": table, "shuffle": False, "rank": world.rank, "world_size": world.size}
        loader_params["batch_format"] = any_model.batch_format(type(model), params)
        test_data = MMCTRDataLoader(feature_map, test, split="test", **loader_params)
        precision = scoring_precision(trained, params, model.device)
        if world.is_main:
            print(f"precision   {precision}")
        with any_model.explained(model, "it failed on the test split"):
            return predict(model, test_data, precision.name)


def run(args: argparse.Namespace, home: Home) -> None:
    """Score, validate, write."""
    args.config_given, args.config = args.config is not None, args.config or str(home.config)
    gpu = checked_gpu(args)
    world = distributed.start(gpu)
    scorers = [Scorer.of(each, home, gpu) for each in named_runs(args)]
    require_each_once(scorers)
    test = one_test_split(scorers, args.test)
    num_rows = len(schema.read_test_ids(test))
    by_rank = args.average is not None and args.average_by == "rank"
    labels = labels_of(args.labels, test, scorers[0].params, by_rank) if args.labels else None
    read = [test, args.labels, *part_files(test), *(path for scorer in scorers for path in scorer.reads())]
    name = "average" if args.average else args.expid
    outputs = submission.require_outputs(args.out or [Path("submission") / f"{name}.zip"], read)
    ids = originals.require_originals(args.original_ids, test, read, outputs) if args.original_ids else None
    if ids is not None and not args.allow_other_data:
        for trained in (scorer.run for scorer in scorers if scorer.run):
            manifest = run_manifest.read_manifest(trained)
            run_manifest.refuse_other_log(manifest, ids.parent / "train.parquet", str(trained.folder))

    if gpu < 0:
        keep_freed_memory()
    scores = [scorer.scores(test, world, args.config) for scorer in scorers]
    if world.is_main:
        if args.average:
            print(f"average     of {len(scores)} runs, by {args.average_by}")
        combined = average(scores, args.average_by) if args.average else scores[0]
        submission.write_submission(combined, outputs, num_rows, args.task)
        if ids is not None:
            originals.write_originals(args.original_ids, ids, test, combined)
        for path in outputs:
            print(printable(submission.check_submission(path, test)))
        if labels is not None:
            found = labels.metrics(combined)
            print(f"metrics     {' - '.join(f'{name}: {value:.6f}' for name, value in found.items())}")
            for reason in labels.undefined().values():
                print(f"note        {reason}")
    distributed.stop()


def named_runs(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The command line as it is, or one for each run of --average.

    Raises:
        UserError: weights are not there, or neither a run's nor named like an experiment, whose settings they take.
    """
    if not args.average:
        return [args]
    named = []
    for each in args.average:
        weights = Path(each) if each.endswith(".model") else None
        if weights and not weights.is_file():
            raise UserError(f"--average {weights}: no such file, expected a run's ID or its .model")
        if weights and run_of(weights) is None and weights.stem not in settings.experiment_ids(args.config):
            raise UserError(
                f"--average {weights}: has no run manifest beside it, and {weights.stem} is no experiment of "
                f"{args.config} whose settings it could have; name a run's file, or rename it EXPID.model"
            )
        expid, checkpoint = (weights.stem, str(weights)) if weights else (each, None)
        named.append(argparse.Namespace(**{**vars(args), "expid": expid, "checkpoint": checkpoint}))
    return named


def require_each_once(scorers: list[Scorer]) -> None:
    """Refuse a run that is named twice, by its ID and by its file perhaps: it would count double."""
    places = [scorer.weights.resolve() for scorer in scorers]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"--average: {place} is named twice, expected each run once")


def one_test_split(scorers: list[Scorer], given: str | None) -> str:
    """The file that all score.

    Raises:
        UserError: the runs have different ones, and none is given.
    """
    splits = [scorer.test_split(given) for scorer in scorers]
    for scorer, split in zip(scorers, splits, strict=True):
        if os.path.realpath(split) != os.path.realpath(splits[0]):  # pathlib's resolve fails on links in a circle
            raise UserError(
                f"--average: {scorer.weights} has the test split {split}, {scorers[0].weights} has {splits[0]}; name "
                "the one to score with --test"
            )
    return splits[0]


def labels_of(path: str, test: str, params: dict, by_rank: bool = False) -> KnownLabels:
    """The test split's labels, for all metrics that there are groups for; `by_rank`: those of scores in their order."""
    group = params.get("group_id")
    names = [name for name in METRICS if (name != "gAUC" or group) and not (by_rank and name == "logloss")]
    return KnownLabels.read(path, test, label_names(params)[0], names, group)


def average(scores: list[np.ndarray], by: str) -> np.ndarray:
    """What several models say of the rows.

    Args:
        scores: float64 [N] each, click probabilities.
        by: "probability" takes their mean; "rank" the mean of their ranks, as shares of N, whatever a model's scale:
            for AUC, no probability any more.

    Returns:
        float64 [N], from 0 to 1.
    """
    if by == "rank":
        scores = [pl.Series(each).rank("average").to_numpy() / len(each) for each in scores]
    return np.mean(scores, axis=0)


def scoring_precision(trained: RunFolder | None, params: dict, device: torch.device) -> Precision:
    """That of the run's validation; that of the settings for weights without a run, or where they ask for another."""
    setting = params.get("precision", "fp32")
    manifest = run_manifest.read_manifest(trained) if trained else {"config": {}}
    as_trained = manifest["config"].get("precision", "fp32") == setting
    return Precision.for_scores(manifest.get("precision") if as_trained else None, setting, device)


def find_run(args: argparse.Namespace, models: ModuleType) -> RunFolder | None:
    """The run whose weights are scored; None for weights without a run's manifest."""
    if args.checkpoint:
        return run_of(Path(args.checkpoint))
    chosen = [change.partition("=")[2].strip() for change in args.set if change.partition("=")[0] == "dataset_id"]
    root = args.model_root
    if root is None:
        try:
            root = config_params(args, models, -1)["model_root"]
        except UserError:  # the run may be of another config
            root = settings.DEFAULT_MODEL_ROOT
    found = run_manifest.find_run(root, args.expid, chosen[-1] if chosen else None)
    if found is None and args.expid not in (known := settings.experiment_ids(args.config)):
        raise UserError(
            f"--expid {args.expid}: there is no run of it in {root} (--model_root names another folder), nor is it an "
            f"experiment of {args.config}; {expected_one_of(args.expid, known, LISTED_BY)}"
        )
    return found


def run_of(weights: Path) -> RunFolder | None:
    """The run that a file of weights is of; None where there is no manifest beside it."""
    run = RunFolder(weights.parent, weights.stem)
    return run if run.weights == weights and run.manifest.is_file() else None


def models_of(trained: RunFolder | None, args: argparse.Namespace, home: Home) -> ModuleType | None:
    """The models with the checkout that a run was trained from, where the command line names none; else None."""
    if trained is None or args.models_from:
        return None
    folder = run_manifest.read_manifest(trained)["data"].get(run_manifest.MODEL_CODE, {}).get("models_from")
    try:
        return home.import_models(folder) if folder else None
    except UserError as error:
        raise UserError(
            f"the run in {trained.folder} is of a class of {folder}, where it is no longer ({error}); name its new "
            "place with --models_from"
        ) from error


def config_params(args: argparse.Namespace, models: ModuleType, gpu: int, manifest: dict | None = None) -> dict:
    """The config's settings.

    Args:
        manifest: of a run, whose --set and --data_root hold as long as nothing else is given.
    """
    manifest = manifest or {"config": {}}
    given = settings.parse_overrides(args.set)
    before = manifest.get("set") or []
    kept = [change for change in before if not given.keys() & settings.parse_overrides([change]).keys()]
    trained_on = manifest["config"].get("dataset_id")
    same_data = given.get("dataset_id", trained_on) == trained_on
    data_root = args.data_root or (manifest.get("data_root") if same_data else None)
    return settings.load_params(args.config, args.expid, models, [*kept, *args.set], data_root, args.model_root, gpu)


def run_params(args: argparse.Namespace, models: ModuleType, run: RunFolder, gpu: int) -> dict:
    """The run's settings; what is given on the command line must agree with them.

    Raises:
        UserError: settings, items or weights are not those of the run.
    """
    manifest = run_manifest.read_manifest(run)
    trained = settings.change_params(manifest["config"], models)
    changes = settings.parse_overrides(args.set)
    if args.config_given or changes.get("dataset_id", trained["dataset_id"]) != trained["dataset_id"]:
        params = config_params(args, models, gpu, manifest)
    else:
        params = settings.change_params(trained, models, args.set, args.data_root, args.model_root, gpu)
    run_manifest.refuse_other_weights(manifest, run)
    if not args.allow_other_data:
        code = model_source.code_entry(models, settings.find_model(models, params["model"]))
        run_manifest.refuse_other_code(manifest, code, str(run.folder))
        run_manifest.refuse_other_settings(trained, params, str(run.folder))
        run_manifest.refuse_other_items(manifest, params, str(run.folder))
    return params
