"""In FuxiCTR's own loop our models end with the weights that they have in ours."""

import numpy as np
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
HISTORY_LEVELS = ("DIN_att6", "DIN_att_emb_rms")  # published with the levels of the history
# Part of these weights moves nothing: keys of attention that is all alike have no gradient but what rounding leaves, of
# which Adam makes steps. They are compared under SGD, all others and the scores under Adam too.
UNMOVED = {"Transformer_DCN": "self_attn.in_proj", "DIN_att6": "multihead_attn.in_proj"}
CASES = [
    *((name, form, "adam") for name in FIRST for form in ("triple", "indices")),
    *((name, "triple", "adam") for name in OTHERS),
    *((name, "triple", "SGD") for name in UNMOVED),
]


def trained(
    model_class: type, params: dict, feature_map, batch_format: str
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Weights and scores of the validation split after run_expid.py's lines: seed, model, loaders, fit."""
    seed_everything(params["seed"])
    model = model_class(feature_map, **params)
    loaders = RankDataLoader(
        feature_map, stage="train", data_loader=MMCTRDataLoader, batch_format=batch_format, **params
    )
    train, valid = loaders.make_iterator() if hasattr(loaders, "make_iterator") else loaders
    model.fit(train, validation_data=valid, **params)
    return model.state_dict(), model.predict(valid)


@pytest.mark.parametrize(("name", "batch_format", "optimizer"), CASES)
def test_fuxictrs_loop_and_ours_end_with_the_same_weights(name, batch_format, optimizer, dataset, tmp_path):
    params = load_params(dataset, "FiBiNET_test", model_zoo, model_root=str(tmp_path))
    params.update(epochs=3, attention_hidden_activations="ReLU", **SIZES.get(name, {}))
    params.update(optimizer=optimizer, learning_rate=1e-3 if optimizer == "adam" else 0.1)
    if name in HISTORY_LEVELS:
        params["history_levels"] = True
    feature_map = build_feature_map(params)
    ours = getattr(model_zoo, name)
    theirs = type(name, (ours,), {method: getattr(BaseModel, method) for method in FUXICTRS})
    found, scores = trained(ours, params, feature_map, batch_format)
    expected, their_scores = trained(theirs, params, feature_map, batch_format)
    np.testing.assert_allclose(scores, their_scores, rtol=0, atol=2e-5)  # weights a millionth apart move some by 1e-5
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        if optimizer == "adam" and UNMOVED.get(name, "nothing") in key:
            continue
        torch.testing.assert_close(found[key], values, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
