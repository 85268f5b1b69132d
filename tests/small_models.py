"""Models of encoders that are made in a moment: random weights in the real files of their libraries."""

import json
from pathlib import Path

import torch
from PIL import Image

WORDS = ["cat", "dog", "river", "night", "city", "song", "query", ":", "picture", "a", "of", "the", "snow", "robot"]


def bert_folder(folder: Path, width: int = 32, pooling: str = "cls", seed: int = 0, **config) -> Path:
    """A sentence-transformers model: a BERT of one layer, pooled as asked, vectors of length 1."""
    import transformers
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    made = transformers.BertConfig(vocab_size=len(vocabulary), hidden_size=width, **sizes, **config)
    plain = folder / "plain"
    transformers.BertModel(made).save_pretrained(plain)
    (plain / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(plain / "vocab.txt")).save_pretrained(plain)
    with_pooling = SentenceTransformer(str(plain), device="cpu")
    with_pooling.append(_normalize())
    with_pooling.save(str(folder / "model"))
    settings = folder / "model" / "1_Pooling" / "config.json"
    found = json.loads(settings.read_text())
    changed = {name: name == f"pooling_mode_{pooling}_token{'s' * (pooling == 'mean')}" for name in found
               if name.startswith("pooling_mode_")}  # fmt: skip
    settings.write_text(json.dumps(found | changed | ({"pooling_mode": pooling} if "pooling_mode" in found else {})))
    return folder / "model"


def _normalize():
    try:
        from sentence_transformers.base.modules import Normalize
    except ImportError:  # before 5.4
        from sentence_transformers.models import Normalize
    return Normalize()


def joint_folder(folder: Path) -> Path:
    """A model of texts and pictures in one space of 16 numbers: transformers' CLIP of one layer each."""
    import transformers

    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    plain = folder / "joint"
    plain.mkdir(parents=True)
    (plain / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (plain / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(plain / "vocab.json"), str(plain / "merges.txt"), model_max_length=20)
    size = {"height": 32, "width": 32}
    pictures = transformers.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokens), "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1}
    vision = tower | {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(plain)
    transformers.CLIPProcessor(pictures, tokenizer).save_pretrained(plain)
    return plain


def clip_files(folder: Path, size: int = 32) -> str:
    """NAME:FILE of an open_clip model of one layer a tower, in one space of 24 numbers."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": size, "patch_size": 16, "width": 64, "layers": 1}
    config = folder / "small_clip.json"
    config.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("small_clip").state_dict(), folder / "small_clip.pt")
    return f"{config}:{folder / 'small_clip.pt'}"


def gradient(width: int, height: int) -> Image.Image:
    """A picture that is another one at every size."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")
