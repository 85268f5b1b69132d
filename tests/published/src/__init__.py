"""The solution's model, under the name that its config has."""

from .mean_pooling import MeanPooling
from .mmctr_dataloader import MMCTRDataLoader

__all__ = ["MMCTRDataLoader", "MeanPooling"]
