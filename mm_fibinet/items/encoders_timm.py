"""Image encoders of timm, `timm:NAME[:FILE]`: any of its networks, up to the pooled features."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mm_fibinet.errors import UserError
from mm_fibinet.items import hub, pictures
from mm_fibinet.items.decoding import DECODING, decode_image
from mm_fibinet.items.encoding import Loading, NetworkEncoder
from mm_fibinet.items.weights import fingerprint, quiet_logging
from mm_fibinet.names import did_you_mean


def load_timm(name: str, how: Loading) -> NetworkEncoder:
    """NAME is one of timm's, with the weights' tag where it has several; FILE holds other weights for it."""
    from timm.data import create_transform, resolve_model_data_config

    architecture, _, file = name.partition(":")
    _require_known(architecture, how)
    try:
        with quiet_logging():
            network = _from_file(architecture, Path(file)) if file else _pretrained(architecture, how)
            network = network.eval()
            settings = resolve_model_data_config(network)
            to_tensor, taking_bytes = pictures.split(create_transform(**settings, is_training=False), network)
            with torch.inference_mode():
                dim = network(torch.zeros(1, *settings["input_size"])).shape[1]
    except Exception as error:  # its download and checkpoint code raise all kinds
        raise how.refuse(
            error, f"give the file of the weights, timm:{architecture}:FILE, or another of timm.list_pretrained()"
        ) from error
    identity = how.identity("timm", architecture, fingerprint(network, settings), DECODING)
    return NetworkEncoder(identity, taking_bytes, lambda content: to_tensor(decode_image(content)), dim, how)


def _require_known(architecture: str, how: Loading) -> None:
    import timm

    if timm.is_model(architecture):
        return
    meant = did_you_mean(architecture, timm.list_models())
    found = f"timm has no such network{f', {meant}' if meant else ''}"
    raise UserError(f"{how.option}: {found}; see timm.list_models() for all")


def _from_file(architecture: str, file: Path) -> nn.Module:
    """The network with weights of a file, each of its own there; a classifier's are left out."""
    import timm
    from timm.models import load_state_dict

    if not file.is_file():
        raise FileNotFoundError(f"{file} is no file")
    network = timm.create_model(architecture, pretrained=False, num_classes=0)
    weights = load_state_dict(str(file), device="cpu", weights_only=True)
    names = network.pretrained_cfg.get("classifier") or ()
    classifier = tuple(f"{part}." for part in ((names,) if isinstance(names, str) else names))
    own = {key: value for key, value in weights.items() if not key.startswith(classifier or ("\0",))}
    network.load_state_dict(own)
    return network


def _pretrained(architecture: str, how: Loading) -> nn.Module:
    """The network with its published weights, which are downloaded once."""
    import timm

    published: Any = timm.models.get_pretrained_cfg(architecture)
    if published is None or not published.has_weights:
        raise LookupError("timm has no weights for it")
    if not published.hf_hub_id:
        raise LookupError("its weights are not on the Hugging Face hub")
    return hub.load(
        how.option,
        (published.hf_hub_id.rstrip("/"),),
        lambda: timm.create_model(architecture, pretrained=True, num_classes=0),
        f"give the file of the weights, timm:{architecture}:FILE",
    )
