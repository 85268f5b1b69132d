"""FiBiNET equals the published and the stock model where they overlap."""

import pytest
import torch
from conftest import Golden

import model_zoo
from model_zoo.layers import BILINEAR_TYPES


@pytest.mark.parametrize("bilinear_type", BILINEAR_TYPES)
def test_golden_outputs(bilinear_type):
    golden = Golden(f"fibinet_{bilinear_type}")
    model = model_zoo.FiBiNET(golden.feature_map(), **golden.spec["hyper_parameters"])
    model.load_state_dict(golden.weights, strict=True)
    model.eval()
    for inputs in (golden.dictionary(), golden.batch, golden.batch.triple()):
        torch.testing.assert_close(model(inputs)["y_pred"], golden.expected, rtol=0, atol=1e-6)
