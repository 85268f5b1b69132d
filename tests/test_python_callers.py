"""Mistakes of those who call the library from Python, where no settings file is checked: each is one clear error."""

import numpy as np
import pytest
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader

import model_zoo
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import load_params


class Notebook:
    """What a FuxiCTR user has at hand: settings, feature map, the loaders that FuxiCTR makes."""

    def __init__(self, config, folder):
        self.params = load_params(config, "FiBiNET_test", model_zoo, model_root=str(folder))
        self.feature_map: FeatureMap = build_feature_map(self.params)

    def loaders(self, stage="train", **changes):
        made = RankDataLoader(self.feature_map, stage=stage, data_loader=MMCTRDataLoader, **{**self.params, **changes})
        return made.make_iterator() if hasattr(made, "make_iterator") else made

    def fit(self, model_class=model_zoo.FiBiNET, **changes):
        model = model_class(self.feature_map, **{**self.params, **changes})
        train, valid = self.loaders()
        model.fit(train, validation_data=valid, epochs=1)
        return model


@pytest.fixture
def notebook(dataset, tmp_path):
    return Notebook(dataset, tmp_path)


@pytest.mark.parametrize(
    ("monitor", "mode", "right"),
    [
        ("AUC", "Max", "max"),
        ("AUC", "min", "max"),
        ("logloss", "max", "min"),
        ({"AUC": 1, "logloss": -1}, "min", "max"),
    ],
)
def test_a_mode_that_keeps_the_worst_epoch_is_refused(notebook, monitor, mode, right):
    with pytest.raises(UserError, match=f"monitor_mode is '{mode}', expected '{right}' for"):
        notebook.fit(monitor=monitor, monitor_mode=mode)


def test_a_layer_that_the_optimizer_does_not_know_is_refused(notebook):
    class Late(model_zoo.FiBiNET):
        def __init__(self, feature_map, **kwargs):
            super().__init__(feature_map, **kwargs)
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.late = torch.nn.Linear(1, 1)

        def forward(self, inputs):
            return {"y_pred": self.late(super().forward(inputs)["y_pred"]).sigmoid()}

    with pytest.raises(UserError, match=r"Late: the optimizer does not train late\.weight, late\.bias, .*Call compile"):
        notebook.fit(Late)

    class Frozen(Late):
        def __init__(self, feature_map, **kwargs):
            super().__init__(feature_map, **kwargs)
            self.late.requires_grad_(False)

        def fit(self, *args, **kwargs):
            before = self.late.weight.clone()
            super().fit(*args, **kwargs)
            assert torch.equal(self.late.weight, before)

    notebook.fit(Frozen)


@pytest.mark.parametrize("setting", ["batch_size", "max_len"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_refused(notebook, setting, value):
    with pytest.raises(UserError, match=f"{setting} is {value}, expected a whole number of at least 1"):
        notebook.loaders(**{setting: value})


@pytest.mark.parametrize(
    ("loss", "found"), [(None, "NoneType"), (0.5, "float"), (torch.zeros(3), r"a tensor of shape \[3\]")]
)
def test_a_loss_that_is_none_is_named(notebook, loss, found):
    class Own(model_zoo.FiBiNET):
        def add_loss(self, return_dict, y_true):
            return loss

    with pytest.raises(UserError, match=f"Own: add_loss gave {found}, expected the loss of the batch"):
        notebook.fit(Own)


def test_a_test_split_is_predicted_and_not_evaluated(notebook):
    model = model_zoo.FiBiNET(notebook.feature_map, **notebook.params)
    test = notebook.loaders("test")
    assert np.isfinite(model.predict(test)).all()
    with pytest.raises(UserError, match=r"the data have no column label.*call predict"):
        model.evaluate(test)


def test_an_interruption_while_the_optimizer_is_made_is_one(notebook, monkeypatch):
    """FuxiCTR's get_optimizer calls whatever happens there an unknown optimizer."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.RMSprop, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model_zoo.FiBiNET(notebook.feature_map, **{**notebook.params, "optimizer": "RMSprop"})


@pytest.mark.parametrize("name", ["adm", "Optimizer.__init__", "lr_scheduler"])
def test_an_unknown_optimizer_is_named(notebook, name):
    with pytest.raises(UserError, match=f"optimizer is '{name}', expected the name of one in torch.optim"):
        model_zoo.FiBiNET(notebook.feature_map, **{**notebook.params, "optimizer": name})
