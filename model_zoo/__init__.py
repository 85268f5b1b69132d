"""The models, each a FuxiCTR BaseModel, made as FuxiCTR makes them: `getattr(model_zoo, params["model"])`.

A model is one file here (a FieldModel, a HistoryModel or a MultimodalModel with layers and a `forward`), its name
below, and its small sizes in tests/test_model_contract.py, which says so when they are missing.
"""

from model_zoo.autoint import AutoInt
from model_zoo.dcnv2 import DCNv2
from model_zoo.deepfm import DeepFM
from model_zoo.din import DIN
from model_zoo.din_att6 import DIN_att6
from model_zoo.din_att_emb_rms import DIN_att_emb_rms
from model_zoo.fibinet import FiBiNET
from model_zoo.finalmlp import FinalMLP
from model_zoo.fm import FM
from model_zoo.gdcn import GDCN
from model_zoo.lr import LR
from model_zoo.qin import QIN
from model_zoo.transformer_dcn import Transformer_DCN
from model_zoo.xdeepfm import xDeepFM

QIN_variety_v9 = QIN  # the name in its authors' configs

__all__ = [
    "DIN",
    "FM",
    "GDCN",
    "LR",
    "QIN",
    "AutoInt",
    "DCNv2",
    "DIN_att6",
    "DIN_att_emb_rms",
    "DeepFM",
    "FiBiNET",
    "FinalMLP",
    "QIN_variety_v9",
    "Transformer_DCN",
    "xDeepFM",
]
