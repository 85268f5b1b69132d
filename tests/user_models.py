"""What a user's own module holds, for the tests of models that are not ours; a test copies it into its folder."""

from pathlib import Path

MODULE = '''
import torch
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from helpers import scale


class Mine(BaseModel):
    """DeepFM as FuxiCTR writes its models: flat batches, FuxiCTR's linear part, no attribute of ours."""

    def __init__(self, feature_map, model_id="Mine", gpu=-1, learning_rate=1e-3, embedding_dim=10, hidden_units=[8],
                 alpha=1, embedding_regularizer=None, net_regularizer=None, **kwargs):
        super().__init__(feature_map, model_id=model_id, gpu=gpu, embedding_regularizer=embedding_regularizer,
                         net_regularizer=net_regularizer, **kwargs)
        self.alpha = alpha
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=hidden_units)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        X = self.get_inputs(inputs)
        fields = self.embedding_layer(X)
        logit = self.fm(X, fields) + scale(self.alpha) * self.mlp(fields.flatten(1))
        return {"y_pred": self.output_activation(logit)}


class Broken(Mine):
    def forward(self, inputs):
        return {"y_pred": inputs["no_such_column"]}


class Narrow(Mine):
    def forward(self, inputs):
        return {"y_pred": super().forward(inputs)["y_pred"][:3]}


class Logits(Mine):
    def forward(self, inputs):
        return {"y_pred": super().forward(inputs)["y_pred"] * 3 - 1}


class NoNumber(Mine):
    def forward(self, inputs):
        return {"y_pred": super().forward(inputs)["y_pred"] * float("nan")}


class Unmakeable(Mine):
    def __init__(self, feature_map, **kwargs):
        raise ValueError("units must be even")


class OwnStep(Mine):
    def train_step(self, batch_data):
        return super().train_step(batch_data) * 2


class Line(Mine):
    def forward(self, inputs):
        return {"y_pred": super().forward(inputs)["y_pred"].view(-1)}


class LineWithLoss(Line):
    def compute_loss(self, return_dict, y_true):
        return ((return_dict["y_pred"] - y_true.view(-1)) ** 2).mean()


class Rounded(Mine):
    def forward(self, inputs):
        return {"y_pred": (super().forward(inputs)["y_pred"] > 0.5).long()}


class Detached(Mine):
    def forward(self, inputs):
        return {"y_pred": super().forward(inputs)["y_pred"].detach()}


class Uncompiled(Mine):
    def compile(self, *arguments, **settings):
        pass


class Unmade(BaseModel):
    def __init__(self, feature_map, **kwargs):
        self.width = 1


class Unsized(Mine):
    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.out = torch.nn.LazyLinear(1)


class Frozen(BaseModel):
    def __init__(self, feature_map, learning_rate=1e-3, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.out = torch.nn.Linear(1, 1)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.requires_grad_(False)


class Leaves(Mine):
    def __init__(self, feature_map, **kwargs):
        raise SystemExit("no licence")


class EvalOnly(Mine):
    def forward(self, inputs):
        if self.training:
            raise RuntimeError("made for scoring")
        return super().forward(inputs)


class TakesNoMore(Mine):
    def __init__(self, feature_map, learning_rate=1e-3):
        super().__init__(feature_map, learning_rate=learning_rate)


class NoModel:
    pass
'''
HELPERS = "def scale(alpha):\n    return 1.0 * alpha\n"


def write(folder: Path, name: str = "my_models") -> Path:
    """The module and its helper in a folder; returns the helper's path."""
    (folder / f"{name}.py").write_text(MODULE)
    (folder / "helpers.py").write_text(HELPERS)
    return folder / "helpers.py"
