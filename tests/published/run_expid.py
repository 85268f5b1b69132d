"""A published solution in miniature: the challenge's script flow on FuxiCTR 2.3.7, with a loader of its own."""

import argparse
import json
import os
from pathlib import Path

import fuxictr_version  # noqa: F401
import src as model_zoo
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor, build_dataset
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr.utils import load_config, set_logger
from src.mmctr_dataloader import MMCTRDataLoader

if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.realpath(__file__)))
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="./config/")
    parser.add_argument("--expid", default="MeanPooling")
    parser.add_argument("--gpu", type=int, default=-1)
    args = parser.parse_args()

    params = load_config(args.config, args.expid)
    params["gpu"] = args.gpu
    set_logger(params)
    seed_everything(params["seed"])
    data_dir = os.path.join(params["data_root"], params["dataset_id"])
    processor = FeatureProcessor(**params)
    params["train_data"], params["valid_data"], params["test_data"] = build_dataset(processor, **params)
    feature_map = FeatureMap(params["dataset_id"], data_dir)
    feature_map.load(os.path.join(data_dir, "feature_map.json"), params)
    model = getattr(model_zoo, params["model"])(feature_map, **params)

    params["data_loader"] = MMCTRDataLoader
    train, valid = RankDataLoader(feature_map, stage="train", **params).make_iterator()
    model.fit(train, validation_data=valid, **params)
    result = {"loader": type(train).__module__, "AUC": model.evaluate(valid)["AUC"]}
    result["weights"] = {name: float(value.abs().sum()) for name, value in model.state_dict().items()}
    Path("result.json").write_text(json.dumps(result))
