"""The modalities an item embedding is made of. A further one (audio, say) is one more `Modality` in MODALITIES.

The record says how the modality is called, where its contents come from and which encoders there are; the build, the
command line's options, the manifest and the summary follow from it. What reads and what encodes is loaded when it is
needed: the options are known without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mm_fibinet.options import DEFAULT_IMAGE, DEFAULT_TEXT

if TYPE_CHECKING:
    from mm_fibinet.items.contents import Source
    from mm_fibinet.items.encoding import Loaders


@dataclass(frozen=True)
class Reading:
    """How contents are read; a modality takes what concerns it.

    Attributes:
        num_items: the ids of item_info are 0 .. num_items.
        text_columns: of item_feature, None for those with usual names.
        opening_words: the text's second view, 0 for none.
    """

    num_items: int
    text_columns: list[str] | None = None
    opening_words: int = 0


@dataclass(frozen=True)
class Modality:
    """One kind of content.

    Attributes:
        name: of the manifest's entry, and of the option NAME_encoder.
        prefix: of the column of this modality alone, PREFIX_dN; as item_feature names the organisers' features.
        source: the option that says where the contents are.
        read: opens the source; the views of what it returns are the views of the items.
        encoders: gives the loaders to choose from by name.
        default: the encoder's name when none is given.
        expected: what a source without any content lacks.
        flaws: the kinds of `BadContent` that are counted.
        source_help: of the source's option.
        encoder_help: of the encoder's option.
        has_prompt: whether its encoders take words before a content.
    """

    name: str
    prefix: str
    source: str
    read: Callable[[str | Path, Reading], Source]
    encoders: Callable[[], Loaders]
    default: str
    expected: str
    flaws: tuple[str, ...] = ()
    source_help: str = ""
    encoder_help: str = ""
    has_prompt: bool = False

    @property
    def encoder_option(self) -> str:
        """The name of the option that chooses the encoders."""
        return f"{self.name}_encoder"

    @property
    def dim_option(self) -> str:
        """The name of the option that chooses shorter vectors."""
        return f"{self.name}_dim"

    @property
    def prompt_option(self) -> str:
        """The name of the option that gives the prompt."""
        return f"{self.name}_prompt"

    @property
    def options(self) -> list[str]:
        """The names of all its options."""
        prompt = [self.prompt_option] if self.has_prompt else []
        return [self.source, self.encoder_option, self.dim_option, *prompt]


def _read_text(path: str | Path, how: Reading) -> Source:
    from mm_fibinet.items.texts import read_texts

    return read_texts(path, how.num_items, how.text_columns, how.opening_words)


def _read_images(path: str | Path, how: Reading) -> Source:
    from mm_fibinet.items.sources import ImageSource

    return ImageSource(path, how.num_items)


def _text_encoders() -> Loaders:
    from mm_fibinet.items.encoders import TEXT_ENCODERS

    return TEXT_ENCODERS


def _image_encoders() -> Loaders:
    from mm_fibinet.items.encoders import IMAGE_ENCODERS

    return IMAGE_ENCODERS


MODALITIES = (
    Modality(
        name="text",
        prefix="txt_emb",
        source="item_feature",
        read=_read_text,
        encoders=_text_encoders,
        default=DEFAULT_TEXT,
        expected="titles or tags",
        source_help="parquet with item_id and a title, tags (words), a description or some of these",
        encoder_help="minilm (in the package), sentence_transformers:ID_OR_FOLDER, open_clip:NAME:TAG_OR_FILE, "
        "joint:ID_OR_FOLDER, column:NAME, module:FILE:CLASS, or none",
        has_prompt=True,
    ),
    Modality(
        name="image",
        prefix="img_emb",
        source="images",
        read=_read_images,
        encoders=_image_encoders,
        default=DEFAULT_IMAGE,
        expected="usable images named ITEM_ID.jpg with ids of item_info",
        flaws=("corrupt", "oversized"),
        source_help="folder, .zip, .rar, .tar or .h5 of ITEM_ID.jpg (.jpeg, .png, .webp), or .parquet with their bytes",
        encoder_help="efficientnet_lite0 (in the package), timm:NAME[:FILE], open_clip:NAME:TAG_OR_FILE, "
        "joint:ID_OR_FOLDER, column:NAME, module:FILE:CLASS, or none",
    ),
)
