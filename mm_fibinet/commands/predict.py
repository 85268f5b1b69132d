"""Score the test split with a trained experiment and write the challenge's submission, as a zip, a CSV or both.

The settings are those of the run's manifest, so nothing of the training's command line need be repeated; what is given
again must agree, and the items' files must be those trained on. Weights from elsewhere have no manifest: named with
--checkpoint, they take the config's settings.
"""

import argparse
from pathlib import Path
from types import ModuleType

import torch

from mm_fibinet import any_model, distributed, model_source, run_manifest, schema, settings, submission
from mm_fibinet.checkpoint import load_weights
from mm_fibinet.commands import Home
from mm_fibinet.commands.train import checked_gpu, own_item_table
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError, printable
from mm_fibinet.feature_map import build_feature_map, load_feature_map
from mm_fibinet.memory import keep_freed_memory
from mm_fibinet.parquet_reader import part_files
from mm_fibinet.precision import Precision
from mm_fibinet.prepare import originals
from mm_fibinet.run_folder import RunFolder
from mm_fibinet.scoring import predict


def run(args: argparse.Namespace, home: Home) -> None:
    """Score, validate, write."""
    args.config_given, args.config = args.config is not None, args.config or str(home.config)
    gpu = checked_gpu(args)
    models = home.import_models(args.models_from)
    world = distributed.start(gpu)
    trained = find_run(args, models)
    models = models_of(trained, args, home) or models
    params = run_params(args, models, trained, gpu) if trained else config_params(args, models, gpu)
    weights = Path(args.checkpoint) if args.checkpoint else (trained or RunFolder.of(params)).weights
    test = args.test or params.get("test_data")
    if not test:
        raise UserError(f"dataset {params['dataset_id']} has no test_data; name a file with --test")
    num_rows = len(schema.read_test_ids(test))
    tables = [params.get(key) for key in ("item_info", "item_feature", "user_info")]
    read = [test, *part_files(test), *tables, weights]
    outputs = submission.require_outputs(args.out or [Path("submission") / f"{args.expid}.zip"], read)
    ids = originals.require_originals(args.original_ids, test, read, outputs) if args.original_ids else None
    if ids is not None and trained and not args.allow_other_data:
        manifest = run_manifest.read_manifest(trained)
        run_manifest.refuse_other_log(manifest, ids.parent / "train.parquet", str(trained.folder))

    if gpu < 0:
        keep_freed_memory()
    if world.is_main:
        source = trained.manifest if trained else f"{args.config}: {weights} has no run manifest beside it"
        print(f"settings    {printable(source)}")
        if trained and not trained.result.exists():
            print("note        the run has not finished: its best weights so far are used")
    feature_map = load_feature_map(trained.feature_map, params) if trained else build_feature_map(params)
    model_class = settings.find_model(models, params["model"])
    model = any_model.make_model(model_class, feature_map, params)
    load_weights(model, weights)
    table = own_item_table(params, model, feature_map)
    loader_params = {**params, "item_info": table, "shuffle": False, "rank": world.rank, "world_size": world.size}
    loader_params["batch_format"] = any_model.batch_format(model_class, params)
    test_data = MMCTRDataLoader(feature_map, test, split="test", **loader_params)
    precision = scoring_precision(trained, params, model.device)
    if world.is_main:
        print(f"precision   {precision}")
    with any_model.explained(model, "it failed on the test split"):
        scores = predict(model, test_data, precision.name)
    if world.is_main:
        submission.write_submission(scores, outputs, num_rows, args.task)
        if ids is not None:
            originals.write_originals(args.original_ids, ids, test, scores)
        for path in outputs:
            print(printable(submission.check_submission(path, test)))
    distributed.stop()


def scoring_precision(trained: RunFolder | None, params: dict, device: torch.device) -> Precision:
    """That of the run's validation; that of the settings for weights without a run, or where they ask for another."""
    setting = params.get("precision", "fp32")
    manifest = run_manifest.read_manifest(trained) if trained else {"config": {}}
    as_trained = manifest["config"].get("precision", "fp32") == setting
    return Precision.for_scores(manifest.get("precision") if as_trained else None, setting, device)


def find_run(args: argparse.Namespace, models: ModuleType) -> RunFolder | None:
    """The run whose weights are scored; None for weights without a run's manifest."""
    if args.checkpoint:
        weights = Path(args.checkpoint)
        run = RunFolder(weights.parent, weights.stem)
        return run if run.weights == weights and run.manifest.is_file() else None
    chosen = [change.partition("=")[2].strip() for change in args.set if change.partition("=")[0] == "dataset_id"]
    root = args.model_root
    if root is None:
        try:
            root = config_params(args, models, -1)["model_root"]
        except UserError:  # the run may be of another config
            root = settings.DEFAULT_MODEL_ROOT
    found = run_manifest.find_run(root, args.expid, chosen[-1] if chosen else None)
    if found is None and args.expid not in settings.experiment_ids(args.config):
        raise UserError(
            f"--expid {args.expid}: there is no run of it in {root}, nor is it an experiment of {args.config}; name "
            "the folder of its run with --model_root"
        )
    return found


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
