"""What a leaderboard's page tells of a run on request: its settings, and what its manifest says of how it was made.

The page may be published, so files are there by name and hash and not by where they lay on a machine.
"""

from pathlib import Path
from typing import Any

from mm_fibinet.errors import printable
from mm_fibinet.settings import DATA_FILES

PLACES = (*DATA_FILES, "data_root", "model_root", "models_from")  # settings that are paths
FACTS = ("started", "finished", "device", "versions", "machine", "precision", "parameters", "features")


def details(manifest: dict) -> dict[str, Any]:
    """Settings and facts of a run, every text printable.

    Args:
        manifest: of `run_manifest.read_manifest`.

    Returns:
        {"settings": {name: value}, "manifest": {name: value}}.
    """
    settings = {key: value for key, value in manifest["config"].items() if key not in PLACES}
    data = {
        key: {"file": Path(str(entry.get("path", ""))).name, "bytes": entry.get("bytes"), "sha256": entry.get("sha256")}
        for key, entry in manifest["data"].items()
    }
    facts = {key: manifest[key] for key in FACTS if key in manifest}
    return {"settings": _printable(settings), "manifest": _printable({**facts, "data": data})}


def _printable(value: Any) -> Any:
    """The value with every text in it printable."""
    if isinstance(value, dict):
        return {printable(key): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value
