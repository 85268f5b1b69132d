"""Which of an item's columns are its modalities: what the multimodal models ask of a data set, and say if it lacks it.

A modality is an embedding column of the items, of text or image for example. Those that the data set's entry names are
features of every model; `modality_features` adds columns that item_info has besides.
"""

from fuxictr.features import FeatureMap

from mm_fibinet.errors import UserError


def embedding_features(feature_map: FeatureMap) -> list[str]:
    """The items' embedding features, in the feature map's order."""
    features = feature_map.features
    return [name for name, spec in features.items() if spec["type"] == "embedding" and spec.get("source") == "item"]


def require_modalities(
    model: str,
    feature_map: FeatureMap,
    names: list[str] | tuple[str, ...] | None,
    compared_only: list[str] | tuple[str, ...] | None = (),
    setting: str = "modality_features",
) -> list[str]:
    """The modalities a model reads: those that are named, or else all embedding features of the items.

    Args:
        model: its name, for the error.
        feature_map: FuxiCTR's FeatureMap.
        names: the setting's value.
        compared_only: `similarity_only` of a model that reads modalities as features of the items, which these are not.
        setting: its name, for the error.

    Raises:
        UserError: there is none, one is named twice, or one that is named is no embedding of the items or is only
            compared.
    """
    known = embedding_features(feature_map)
    if not known:
        raise UserError(
            f"{model} reads embeddings of the items, but the feature map has no feature of source item and of type "
            f"embedding; make one with build_item_emb.py and name it in feature_cols or in {setting}"
        )
    left_out = list(compared_only or ())
    if not names and set(known) <= set(left_out):
        raise UserError(
            f"{model} reads embeddings of the items as features, but similarity_only takes {', '.join(known)} out of "
            "these; leave one in"
        )
    names = list(names or [name for name in known if name not in left_out])
    for name in names:
        if name in left_out:
            raise UserError(
                f"{setting} and similarity_only both have {name!r}, but {model} reads modalities as features "
                "of the items, which similarity_only takes it out of; name it in one of the two"
            )
        if name not in known or names.count(name) > 1:
            raise UserError(
                f"{setting} is {names}, expected features of source item and of type embedding, each once, "
                f"here of {', '.join(known)}"
            )
    return names
