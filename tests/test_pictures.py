"""Pictures stay bytes until the network: the same numbers as the preprocessing that its library gives."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torchvision import transforms

from mm_fibinet.items import pictures

RANDOM = np.random.default_rng(3)
SIZES = [(320, 180), (90, 138), (224, 224), (33, 500)]


class Seen(nn.Module):
    """A network that gives back what it is given."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, batch):
        return batch


def drawn():
    return [Image.fromarray(RANDOM.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in SIZES]


def preprocessing(kind):
    if kind == "timm":
        network = timm.create_model("mobilenetv3_small_050", pretrained=False)
        return create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    open_clip = pytest.importorskip("open_clip")
    return open_clip.image_transform(64, is_train=False)


@pytest.mark.parametrize("kind", ["timm", "open_clip"])
def test_the_network_is_given_the_same_bits(kind):
    preprocess = preprocessing(kind)
    to_bytes, network = pictures.split(preprocess, Seen())
    found = drawn()
    samples = [to_bytes(picture) for picture in found]
    assert all(sample.dtype == torch.uint8 for sample in samples)
    expected = torch.stack([preprocess(picture) for picture in found])
    assert torch.equal(network(torch.stack(samples)), expected)


def test_a_network_in_half_precision_is_given_its_own_type():
    to_bytes, network = pictures.split(preprocessing("timm"), Seen(torch.bfloat16))
    [picture, *_] = drawn()
    assert torch.equal(network(to_bytes(picture)[None])[0], preprocessing("timm")(picture).bfloat16())


def test_another_preprocessing_stays_as_it_is():
    seen = Seen()
    later = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5]), transforms.CenterCrop(8)])
    for preprocess in (later, transforms.Compose([]), lambda picture: picture):
        assert pictures.split(preprocess, seen) == (preprocess, seen)
