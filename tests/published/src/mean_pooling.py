"""A small model in the challenge's way: it reads the triple (batch_dict, item_dict, mask)."""

import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class MeanPooling(BaseModel):
    """Row, target item and mean of the history to an MLP."""

    def __init__(self, feature_map, model_id="MeanPooling", gpu=-1, learning_rate=1e-3, embedding_dim=8, **kwargs):
        super().__init__(feature_map, model_id=model_id, gpu=gpu, **kwargs)
        of_items = [spec for spec in feature_map.features.values() if spec.get("source") == "item"]
        self.item_dim = sum(spec.get("embedding_dim", embedding_dim) for spec in of_items)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim() + self.item_dim,
            output_dim=1,
            hidden_units=[16],
            output_activation=self.output_activation,
        )
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        batch_dict, item_dict, mask = inputs
        used = [name for name, spec in self.feature_map.features.items() if spec["type"] != "meta"]
        row = {name: batch_dict[name].to(self.device) for name in used if name in batch_dict}
        items = {name: values.to(self.device) for name, values in item_dict.items()}
        mask = mask.to(self.device).unsqueeze(-1)
        vectors = self.embedding_layer(items, flatten_emb=True).view(len(mask), -1, self.item_dim)
        pooled = (vectors[:, :-1] * mask).sum(1) / (mask.sum(1) + 1e-9)
        known = torch.cat([self.embedding_layer(row, flatten_emb=True), vectors[:, -1], pooled], dim=-1)
        return {"y_pred": self.mlp(known)}

    def get_labels(self, inputs):
        return inputs[0][self.feature_map.labels[0]].to(self.device).float().view(-1, 1)

    def get_group_id(self, inputs):
        return inputs[0][self.feature_map.group_id]
