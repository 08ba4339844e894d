"""What a batch has to do: which sources, into which stores, and what is done already."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream4d.commands.run import default_store_path
from stream4d.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One source to reconstruct; plain data, so that it travels to other machines."""

    source: str
    """Path of a video or of a folder of images."""
    out: str
    """Path of its store."""
    config: dict[str, Any]
    """``RunConfig`` as dumped."""
    overwrite: bool = False
    """Replace what is at ``out``; else go on with it."""
    refine: bool = False
    """Refine the store when it is complete."""


def find_sources(given: Sequence[str], list_file: str | None) -> list[str]:
    """Return the sources that were given, those in a list, and for a folder what is in it; each once, however written.

    What does not exist stays: its run will say so.

    Raises:
        ConfigError: nothing, a camera or stream, or a list that cannot be read.
    """
    names = [*given, *(_read_list(list_file) if list_file else [])]
    places: dict[str, str] = {}
    for name in names:
        for source in _expand(name):
            places.setdefault(os.path.abspath(source), source)
    if not places:
        raise ConfigError("no videos to reconstruct: give files, folders, or --list FILE")
    return list(places.values())


def plan(
    sources: Iterable[str], folder: Path, config: dict[str, Any], *, overwrite: bool, refine: bool
) -> list[Job]:
    """Give each source its store in the folder.

    Raises:
        ConfigError: two would have the same.
    """
    jobs: dict[str, Job] = {}
    for source in sources:
        out = str(folder / default_store_path(source))
        if out in jobs:
            raise ConfigError(
                f"{jobs[out].source} and {source} would both be written to {out}: "
                "rename one, or run them as two batches with different --out"
            )
        jobs[out] = Job(source=source, out=out, config=config, overwrite=overwrite, refine=refine)
    return list(jobs.values())


def frames_done(job: Job) -> int | None:
    """Return how many frames its store has, where nothing is left to do; else None."""
    from stream4d.store.metadata import finished_frames

    if job.overwrite:
        return None
    return finished_frames(Path(job.out), job.source, job.config, refined=job.refine)


def _read_list(name: str) -> list[str]:
    try:
        # "utf-8-sig": editors on Windows begin a text with a mark, which is no part of the first name
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the list {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"the list {name} is no text in UTF-8: give a file with a path per line"
        ) from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _expand(name: str) -> list[str]:
    from stream4d.reader.sources import is_live_or_url, sources_in

    if not name.strip():
        raise ConfigError("a source is empty: give a file or a folder (. is this one)")
    if is_live_or_url(name):
        raise ConfigError(f"a batch takes files and folders, not {name}: `stream4d {name}` runs it")
    path = Path(name)
    if not path.is_dir():
        return [name]
    found = [str(source) for source in sources_in(path)]
    if not found:
        raise ConfigError(f"no videos and no folders of images in {name}")
    return found
