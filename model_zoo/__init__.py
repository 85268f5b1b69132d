"""The models, each a FuxiCTR BaseModel, made as FuxiCTR makes them: `getattr(model_zoo, params["model"])`.

A model is one file here (a FieldModel or a HistoryModel with layers and a `compute_logit`), its name below, and its
small sizes in tests/test_model_contract.py, which says so when they are missing.
"""

from .autoint import AutoInt
from .base import MultimodalModel  # noqa: F401 (what all of them are)
from .dcnv2 import DCNv2
from .deepfm import DeepFM
from .din import DIN
from .din_att6 import DIN_att6
from .din_att_emb_rms import DIN_att_emb_rms
from .dmf import DMF
from .fibinet import FiBiNET
from .finalmlp import FinalMLP
from .fm import FM
from .gdcn import GDCN
from .hstu import HSTU
from .lmf import LMF
from .lr import LR
from .make import MAKE
from .marn import MARN
from .muse import MUSE
from .naml import NAML
from .onetrans import OneTrans
from .qarm import QARM
from .qin import QIN
from .rankmixer import RankMixer
from .transformer_dcn import Transformer_DCN
from .wukong import WuKong
from .xdeepfm import xDeepFM

QIN_variety_v9 = QIN  # the name in its authors' configs

__all__ = [
    "DIN",
    "DMF",
    "FM",
    "GDCN",
    "HSTU",
    "LMF",
    "LR",
    "MAKE",
    "MARN",
    "MUSE",
    "NAML",
    "QARM",
    "QIN",
    "AutoInt",
    "DCNv2",
    "DIN_att6",
    "DIN_att_emb_rms",
    "DeepFM",
    "FiBiNET",
    "FinalMLP",
    "OneTrans",
    "QIN_variety_v9",
    "RankMixer",
    "Transformer_DCN",
    "WuKong",
    "xDeepFM",
]
