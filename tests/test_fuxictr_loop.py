"""In FuxiCTR's own loop our models end with the weights that they have in ours."""

import pytest
import torch
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from test_model_contract import SIZES

import model_zoo
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import load_params

FUXICTRS = ("fit", "evaluate", "predict", "save_weights", "load_weights")
FIRST = ["FiBiNET", "DeepFM", "DIN"]
OTHERS = [name for name in model_zoo.__all__ if name not in FIRST and name != "QARM"]  # the data have none of its codes
# Of attention that is all alike the keys have no gradient; Adam would make steps of what rounding leaves of it.
SGD = {"optimizer": "SGD", "learning_rate": 0.1}
OF_LEVELS = {**SGD, "history_levels": True}
NEEDS = {"DIN_att6": OF_LEVELS, "DIN_att_emb_rms": OF_LEVELS, "Transformer_DCN": SGD}


def trained(model_class: type, params: dict, feature_map, batch_format: str) -> dict[str, torch.Tensor]:
    """The weights after run_expid.py's lines: seed, model, loaders, fit."""
    seed_everything(params["seed"])
    model = model_class(feature_map, **params)
    loaders = RankDataLoader(
        feature_map, stage="train", data_loader=MMCTRDataLoader, batch_format=batch_format, **params
    )
    train, valid = loaders.make_iterator() if hasattr(loaders, "make_iterator") else loaders
    model.fit(train, validation_data=valid, **params)
    return model.state_dict()


@pytest.mark.parametrize(
    ("name", "batch_format"),
    [*((name, form) for name in FIRST for form in ("triple", "indices")), *((name, "triple") for name in OTHERS)],
)
def test_fuxictrs_loop_and_ours_end_with_the_same_weights(name, batch_format, dataset, tmp_path):
    params = load_params(dataset, "FiBiNET_test", model_zoo, model_root=str(tmp_path))
    params.update(learning_rate=1e-3, epochs=3, attention_hidden_activations="ReLU", **SIZES.get(name, {}))
    params.update(NEEDS.get(name, {}))
    feature_map = build_feature_map(params)
    ours = getattr(model_zoo, name)
    theirs = type(name, (ours,), {method: getattr(BaseModel, method) for method in FUXICTRS})
    found = trained(ours, params, feature_map, batch_format)
    expected = trained(theirs, params, feature_map, batch_format)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
