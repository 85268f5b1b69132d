"""What a process does in tests/test_any_model_commands.py: `python two_ranks_any_model.py CONFIG FOLDER EXPID ...`.

It trains each experiment for an epoch, as one rank of those that RANK and WORLD_SIZE tell, and rank 0 leaves losses
and weights in FOLDER.
"""

import sys
from pathlib import Path

import torch
from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from mm_fibinet import any_model, distributed, settings
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.item_table import load_item_table
from mm_fibinet.training import Trainer


def train(config, folder, expid):
    """(loss of each step, weights)."""
    world = distributed.current()
    params = settings.load_params(str(config), expid, model_zoo, ["eval_steps=1"], model_root=str(folder))
    model_class = settings.find_model(model_zoo, params["model"])
    seed_everything(params["seed"])
    feature_map = build_feature_map(params)
    model = any_model.make_model(model_class, feature_map, params)
    for dropout in [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]:
        dropout.p = 0.0  # its masks would be each rank's own; MIRRN's has no setting
    items = any_model.item_features(model, feature_map, params)
    params.update(item_info=load_item_table(params["item_info"], items, params["item_feature"]))
    params.update(batch_format=any_model.batch_format(model_class, params), rank=world.rank, world_size=world.size)
    loader = MMCTRDataLoader(feature_map, params["train_data"], **params)
    history = Trainer(model, **{**params, "checkpoint": Path(folder) / f"{expid}.model"}).fit(loader, None, epochs=1)
    return [entry["loss"] for entry in history], {name: value.clone() for name, value in model.state_dict().items()}


def main(config, folder, expids):
    """All experiments, as one rank."""
    world = distributed.start(-1)
    found = {expid: train(config, folder, expid) for expid in expids}
    if world.is_main:
        torch.save(found, Path(folder) / "found.pt")
    distributed.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.append(str(Path.cwd()))
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
