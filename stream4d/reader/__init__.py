"""Video in: files, image folders, webcams and streams become ``Frame`` packets at processed size."""

from __future__ import annotations

from stream4d.reader.base import VideoReader, open_video

__all__ = ["VideoReader", "open_video"]
