"""The models, each a FuxiCTR BaseModel, made as FuxiCTR makes them: `getattr(model_zoo, params["model"])`."""

from model_zoo.fibinet import FiBiNET

__all__ = ["FiBiNET"]
