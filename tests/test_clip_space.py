"""A CLIP of one's own, from files, end to end: texts and covers are in one space, the nearest tag is the right one."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from item_files import build, embedding
from small_models import clip_files

from mm_fibinet.demo.covers import STYLES, draw_cover, save_cover
from mm_fibinet.items.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, load_encoder
from mm_fibinet.items.encoding import Loading

SEED, TAUGHT, ITEMS = 11, 30, 60  # covers a style to learn from; covers that were not seen, the items
STEPS = 40


def tag_text(style: str) -> str:
    return f"a picture of {style}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """open_clip:NAME:FILE of a small network that a moment of training has taught the demo's styles."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    name = clip_files(folder)
    model, _, preprocess = open_clip.create_model_and_transforms("small_clip", pretrained=str(folder / "small_clip.pt"))
    tokens = open_clip.get_tokenizer("small_clip")([tag_text(style) for style in STYLES])
    styles = torch.arange(TAUGHT * len(STYLES)) % len(STYLES)
    covers = [preprocess(draw_cover(style, SEED, 1000 + row)) for row, style in enumerate(styles.tolist())]
    pictures = torch.stack(covers)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    drawn = torch.Generator().manual_seed(SEED)
    for _ in range(STEPS):
        batch = torch.randint(len(pictures), (48,), generator=drawn)
        images, texts, scale = model(pictures[batch], tokens)[:3]
        loss = torch.nn.functional.cross_entropy(scale * images @ texts.T, styles[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "small_clip.pt")
    torch.set_num_threads(before)
    return f"open_clip:{name}"


def test_the_nearest_tag_of_a_drawn_cover_is_its_style(clip, tmp_path):
    """Zero-shot: no cover and no label of these is learned from; one of six would be right by chance."""
    loaded: dict = {}
    how = Loading(torch.device("cpu"), 4, loaded=loaded)
    texts, images = load_encoder("text", clip, how, TEXT_ENCODERS), load_encoder("image", clip, how, IMAGE_ENCODERS)
    assert texts.dim == images.dim and len(loaded) == 1, "one network, loaded once"
    tags = np.vstack([texts.encode([texts.prepare(tag_text(style).encode())[0]]) for style in STYLES])
    right = []
    for item in range(1, ITEMS + 1):
        save_cover(tmp_path / "cover.jpg", item % len(STYLES), SEED, item)
        [vector] = images.encode([images.prepare((tmp_path / "cover.jpg").read_bytes())[0]])
        nearest = (tags @ vector / np.linalg.norm(tags, axis=1)).argmax()
        right.append(nearest == item % len(STYLES))
    assert np.mean(right) >= 0.8, np.mean(right)


def test_a_prompt_comes_before_each_text(clip):
    how = Loading(torch.device("cpu"), 4)
    plain = load_encoder("text", clip, how, TEXT_ENCODERS)
    prompted = load_encoder("text", clip, Loading(torch.device("cpu"), 4, prompt="a picture of "), TEXT_ENCODERS)
    np.testing.assert_array_equal(prompted.encode([prompted.prepare(b"stars")[0]]),
                                  plain.encode([plain.prepare(b"a picture of stars")[0]]))  # fmt: skip
    assert prompted.id == f"{plain.id} prompt 'a picture of '"


def test_the_build_end_to_end(clip, tmp_path, monkeypatch, capsys):
    import open_clip

    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for item in range(1, ITEMS + 1):
        save_cover(data / "images" / f"{item}.jpg", item % len(STYLES), SEED, item)
    titles = [f"{tag_text(STYLES[item % len(STYLES)])} number {item}" for item in range(1, ITEMS + 1)]
    pq.write_table(pa.table({"item_id": range(ITEMS + 1)}), data / "item_info.parquet")
    pq.write_table(pa.table({"item_id": range(1, ITEMS + 1), "title": titles}), data / "item_feature.parquet")
    created, create = [], open_clip.create_model_and_transforms
    monkeypatch.setattr(
        open_clip, "create_model_and_transforms", lambda *name, **how: (created.append(name), create(*name, **how))[1]
    )
    build(data, tmp_path / "out.parquet", monkeypatch, text_encoder=clip, image_encoder=clip)
    out = capsys.readouterr().out
    assert len(created) == 1
    assert re.search(rf"^text +found {ITEMS}, missing 0\n.*^image +found {ITEMS}, missing 0", out, re.M | re.S)
    made = json.loads((tmp_path / "out.build.json").read_text())
    text, image = (made[name]["encoder"].split() for name in ("text", "image"))
    assert text == ["open_clip", "text", *image[1:3]], "the same network and weights"
    values = embedding(tmp_path / "out.parquet")[1:]
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines = values @ values.T - 2 * np.eye(ITEMS)
    neighbours = cosines.argmax(axis=1)
    styles = np.arange(1, ITEMS + 1) % len(STYLES)
    assert np.mean(styles[neighbours] == styles) >= 0.9
