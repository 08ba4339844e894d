"""Checkpoints of the Hugging Face hub, by id: ``owner/name``, with ``:file`` to pick one of its files."""

from __future__ import annotations

import contextlib
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path

from stream4d.errors import MissingDependencyError, WeightsError

HUB_FILES = ("model.safetensors", "model.pt", "pytorch_model.bin")
"""What is looked for in a hub repository, in this order, unless the id names a file."""
HUB_ID = re.compile(r"^(datasets/)?[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w./-]+)?$")


def download(hub_id: str) -> Path:
    """Return the file of a hub id, from the cache where it is there.

    Raises:
        WeightsError: there is none, or the hub cannot be reached.
        MissingDependencyError: ``huggingface_hub`` is not installed.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    except ImportError:
        raise MissingDependencyError(
            "huggingface_hub", needed_for=f"downloading {hub_id!r}", extra="hub"
        ) from None
    repo, _, wanted = hub_id.partition(":")
    kind = "dataset" if repo.startswith("datasets/") else "model"
    names = (wanted,) if wanted else HUB_FILES
    # Asked once, because the hub's own client tries for most of a minute for each name.
    unreachable = _why_hub_is_unreachable()

    def fetch(name: str) -> Path:
        return Path(
            hf_hub_download(
                repo.removeprefix("datasets/"),
                name,
                repo_type=kind,
                local_files_only=unreachable is not None,
            )
        )

    for name in names:
        try:
            path = fetch(name)
            if path.suffix == ".safetensors":
                # Sizes and resolution stand beside the tensors; few repositories have none.
                with contextlib.suppress(EntryNotFoundError):
                    fetch("config.json")
            return path
        except EntryNotFoundError:  # also what is not in the cache while the hub is out of reach
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise WeightsError(
                f"cannot download {hub_id!r}: {first_line(error)}. "
                "Download it yourself and pass the file's path"
            ) from error
    if unreachable is not None:
        raise WeightsError(
            f"cannot reach the Hugging Face hub for {hub_id!r} ({unreachable}): "
            "check the network, or pass a local file with --weights"
        )
    raise WeightsError(f"{hub_id!r} on the hub holds none of {', '.join(names)}")


def _why_hub_is_unreachable() -> str | None:
    """Return why no connection to the hub comes about, or None if one does (or a proxy may know a way)."""
    from huggingface_hub import constants

    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    if hub.hostname is None or urllib.request.getproxies():
        return None
    try:
        port = hub.port or (443 if hub.scheme == "https" else 80)
        socket.create_connection((hub.hostname, port), timeout=10).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def first_line(error: Exception) -> str:
    """Return what an error says, without its details."""
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)
