"""The Hugging Face hub, which is asked for a model that is not on this machine, once, and not for long.

What a user names is a folder or file of this machine, or an id of the hub. A path is never asked for: a mistyped one is
nobody's model. A model that was downloaded before is not asked for again, so a run needs no network and gives the same
vectors. Only then one question goes out, with a short timeout; the libraries' own would try for minutes.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from mm_fibinet.errors import UserError

SECONDS = 5.0  # that the hub has to answer
_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)

Model = TypeVar("Model")


def is_local(name: str) -> bool:
    """Whether a name is a path, not an id of the hub."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or not _ID.fullmatch(name)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """No library asks the hub for anything inside."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def load(option: str, ids: tuple[str, ...], load_model: Callable[[], Model], instead: str) -> Model:
    """A model of the hub: what is on this machine, else downloaded.

    Args:
        option: what asked for it, as the user wrote it.
        ids: the names that the model may have on the hub, the likeliest first.
        load_model: loads it.
        instead: what the user can do without the hub.

    Raises:
        UserError: the hub has no such model, or does not answer.
    """
    if any(_has_files(id) for id in ids):
        try:
            with offline():
                return load_model()
        except (OSError, LookupError):  # the download was interrupted
            pass
    _require_answer(option, ids, instead)
    return load_model()


def _has_files(id: str) -> bool:
    """Whether files of a model were downloaded before."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    snapshots = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=id, repo_type="model"), "snapshots")
    return snapshots.is_dir() and any(snapshots.iterdir())


def _require_answer(option: str, ids: tuple[str, ...], instead: str) -> None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    for id in ids:
        try:
            HfApi().model_info(id, timeout=SECONDS)
        except OfflineModeIsEnabled:
            raise UserError(
                f"{option}: {id} is not on this machine, and HF_HUB_OFFLINE is set; unset it for one run with the "
                f"internet, or {instead}"
            ) from None
        except RepositoryNotFoundError:
            continue
        except Exception as error:  # of the network, of proxies, of certificates
            raise UserError(
                f"{option}: {id} is not on this machine, and {constants.ENDPOINT} did not answer within "
                f"{SECONDS:.0f} s ({type(error).__name__}); connect to the internet for one run, or {instead}"
            ) from error
        else:
            return
    raise UserError(
        f"{option}: {constants.ENDPOINT} has no model {ids[0]} that may be read without logging in, and no file or "
        f"folder here has this name; check it, or {instead}"
    )
