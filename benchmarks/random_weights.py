"""Networks of the default encoders' sizes with random weights, for a machine that has not their packages.

They are as fast as the real ones; vectors mean nothing.
"""

from pathlib import Path

import torch

PIECES = 30_522  # all-MiniLM-L6-v2's vocabulary


def text_folder(folder: Path, words: tuple[str, ...]) -> str:
    """A sentence-transformers model of all-MiniLM-L6-v2's size; returns the encoder's name.

    Args:
        folder: to write.
        words: that its vocabulary has whole.
    """
    import transformers
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"##{digit}" for digit in range(10))]
    others = (f"piece{number}" for number in range(PIECES - len(known)))
    plain = folder / "plain"
    config = transformers.BertConfig(
        vocab_size=PIECES,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
    )
    transformers.BertModel(config).save_pretrained(plain)
    (plain / "vocab.txt").write_text("\n".join([*known, *others]))
    transformers.BertTokenizerFast(str(plain / "vocab.txt"), model_max_length=256).save_pretrained(plain)
    SentenceTransformer(str(plain), device="cpu").save(str(folder / "text"))
    return f"sentence_transformers:{folder / 'text'}"


def image_file(folder: Path) -> str:
    """A file of weights for EfficientNet-Lite0; returns the encoder's name."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    torch.save(network.state_dict(), folder / "image.pt")
    return f"timm:tf_efficientnet_lite0:{folder / 'image.pt'}"
