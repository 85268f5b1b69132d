"""Train and evaluate one experiment ID (challenge task 2), with FuxiCTR's command line."""

import argparse
import logging
from pathlib import Path
from types import ModuleType

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import nn

from mm_fibinet import any_model, commands, distributed, model_source, run_manifest, run_result, settings
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.commands import Home
from mm_fibinet.commands import list as listing
from mm_fibinet.compare import workers
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError, printable
from mm_fibinet.event_files import EventFiles
from mm_fibinet.feature_map import build_feature_map, save_feature_map
from mm_fibinet.fuxictr_adapter import ENTRY_METHODS, refuse_own_loop
from mm_fibinet.item_table import ItemTable, shared_item_table
from mm_fibinet.memory import forget_run, keep_freed_memory
from mm_fibinet.run_folder import RunFolder, RunLog, append_result, note_end
from mm_fibinet.scoring import predict
from mm_fibinet.settings_unread import refuse_unread, unread
from mm_fibinet.training import Trainer


def checked_gpu(args: argparse.Namespace) -> int:
    """The index of this process's GPU, -1 for the CPU."""
    settings.require_device(args.gpu)
    return args.gpu


def run(args: argparse.Namespace, home: Home) -> None:
    """Train, evaluate, and say where the files are."""
    if args.list:
        listing.print_experiments(args.config, args.models_from, home)
        return
    if args.serve:
        home.import_models()
        workers.serve(lambda given: commands.main("train", home, given), tidy=forget_run)
        return
    models = home.import_models(args.models_from)
    changes = [*args.set, *([] if args.checkpoint_every is None else [f"checkpoint_every={args.checkpoint_every}"])]
    try:
        gpu = checked_gpu(args)
        params = settings.load_params(args.config, args.expid, models, changes, args.data_root, args.model_root, gpu)
        if not args.resume:  # what is resumed was begun with it, by a benchmark that has other lines, say
            model_class = settings.find_model(models, params["model"])
            refuse_unread(params, model_class, settings.parse_overrides(changes), "--set")
    except UserError as error:
        earlier = log_of(args)
        if earlier and earlier.is_file():
            note_end(earlier, error)
        raise
    if params["gpu"] < 0:
        keep_freed_memory()
    world = distributed.start(params["gpu"])
    folder = RunFolder.of(params)
    with folder.held(world.is_main), RunLog(folder.log, quiet=not world.is_main) as log:
        run_experiment(args, models, params, world, folder, log)
    distributed.stop()


def log_of(args: argparse.Namespace) -> Path | None:
    """The log of an experiment whose settings are refused, as far as its place can be told without them."""
    try:
        changes = settings.parse_overrides(args.set)
        experiment = {**settings.load_model_config(Path(args.config), args.expid), **changes}
        dataset_id = settings.require_name(experiment["dataset_id"], "dataset_id")
    except UserError:
        return None
    root = args.model_root or experiment.get("model_root") or settings.DEFAULT_MODEL_ROOT
    return RunFolder(Path(str(root)) / dataset_id, args.expid).log


def run_experiment(
    args: argparse.Namespace, models: ModuleType, params: dict, world: distributed.World, run: RunFolder, log: RunLog
) -> None:
    """The run itself: everything is read and checked before the first file of an earlier run is touched."""
    model_class = settings.find_model(models, params["model"])
    announce(params, model_class, run, world)
    given = {key: [value] for key, value in settings.parse_overrides(args.set).items()}
    for key, why in unread(params, given, model_class).items():
        logging.warning("--set: nothing reads %s: %s", key, why)
    feature_map = build_feature_map(params)
    code = model_source.code_entry(models, model_class)
    data = distributed.once_a_machine(lambda: {**run_manifest.data_fingerprint(params), **code})
    seed_everything(params["seed"])
    model = any_model.make_model(model_class, feature_map, params)
    ours = issubclass(model_class, models.MultimodalModel)
    for idle in model.idle_settings() if ours else []:
        logging.warning(idle)
    refuse_own_loop(model, ENTRY_METHODS, models.MultimodalModel if ours else BaseModel)

    table = own_item_table(params, model, feature_map)
    loader_params = {**params, "item_info": table, "batch_format": any_model.batch_format(model_class, params)}
    loader_params.update(rank=world.rank, world_size=world.size)
    train_data = MMCTRDataLoader(feature_map, params["train_data"], split="train", **loader_params)
    loader_params.update(shuffle=False, user_info=train_data.users)
    valid_data = MMCTRDataLoader(feature_map, params["valid_data"], split="valid", **loader_params)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    settings.check_reachable(params, len(train_data))
    announce_data(feature_map, table, train_data, valid_data)
    logging.info("Total number of parameters: %d.", parameters)

    checkpoints = RunCheckpoints(run.folder, run_manifest.run_fingerprint(params, data))
    on_evaluation = [run.write_history, *([EventFiles(run.events)] if params.get("tensorboard") else [])]
    options = {**params, "checkpoints": checkpoints, "on_evaluation": on_evaluation}
    trainer = Trainer(model, **{**options, "checkpoint": run.weights})
    trainer.check(valid_data)
    any_model.try_out(model, valid_data)
    features = feature_map.features
    resumed = args.resume and run_manifest.may_resume(run, params, data, checkpoints.exist(), features)
    resumed = resumed and trainer.resume()
    distributed.barrier()  # until all ranks have read what is there
    if world.is_main:
        if resumed:
            run.reopen()
        else:
            run.clear()
        log.open(append=resumed)
        save_feature_map(feature_map, run.feature_map)
        facts = (feature_map, data, parameters, trainer.precision)
        run_manifest.write_manifest(run, params, args.set, *facts, args.data_root)
    with any_model.explained(model, "it failed in training"):
        history = trainer.fit(train_data, valid_data, epochs=params["epochs"])

    logging.info("****** Validation evaluation ******")
    scores = predict(model, valid_data, trainer.precision.name)
    if world.is_main:
        result = run_result.write_result(run, params, data, model, history, train_data, valid_data, scores)
        run_manifest.finish_manifest(run)
        logging.info("[Metrics] %s", " - ".join(f"{name}: {value:.6f}" for name, value in result.items()))
        results = Path(params["model_root"]) / f"{Path(args.config).resolve().name}.csv"
        append_result(results, params, result)
        for what, path in {"best weights": run.weights, "run folder": run.folder, "results": results}.items():
            print(f"{what:<12}  {printable(path)}")


def own_item_table(params: dict, model: nn.Module, feature_map: FeatureMap) -> ItemTable | None:
    """What the model reads of the items; None for a data set without item_info, whose rows have all."""
    if not params.get("item_info"):
        return None
    items = any_model.item_features(model, feature_map, params)
    return shared_item_table(params["item_info"], items, params.get("item_feature"), model.device)


def announce(params: dict, model_class: type, run: RunFolder, world: distributed.World) -> None:
    """Say what will be done, before anything takes time."""
    gpu = params["gpu"]
    device = f"GPU {gpu}, {torch.cuda.get_device_name(gpu)}" if gpu >= 0 else f"CPU, {torch.get_num_threads()} threads"
    device += f"; one of {world.size} processes" if world.size > 1 else ""
    changed = settings.changed_from_defaults(params, model_class)
    logging.info("Experiment %s: %s on %s", params["model_id"], params["model"], params["dataset_id"])
    logging.info("Device: %s", device)
    logging.info("Settings other than the defaults: %s", ", ".join(f"{k}={changed[k]}" for k in sorted(changed)))
    for key in settings.DATA_FILES:
        if params.get(key) and key != "test_data":
            logging.info("Reads %s: %s", key, params[key])
    logging.info("Writes %s, %s and %s", run.weights, run.log, run.folder)


def announce_data(
    feature_map: FeatureMap, table: ItemTable | None, train_data: MMCTRDataLoader, valid_data: MMCTRDataLoader
) -> None:
    """Say how many rows there are, and what the model reads of them."""
    items = f", items: {table.num_items - 1}" if table else ""
    logging.info("Train samples: %d, validation samples: %d%s", train_data.num_samples, valid_data.num_samples, items)
    kinds = {name: spec["type"] for name, spec in feature_map.features.items() if spec["type"] != "meta"}
    logging.info("%d features: %s", len(kinds), ", ".join(f"{name} ({kind})" for name, kind in kinds.items()))
