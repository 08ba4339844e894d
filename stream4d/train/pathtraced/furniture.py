"""The catalogue of Sweet Home 3D furniture: what there is, how large it is, and what it is good for.

``python -m stream4d.train.pathtraced.furniture FOLDER`` fetches it out of Debian's package ``sweethome3d-furniture``
(120 MB, unpacked 380 MB). Licences of the models, copied beside them: CC0 (part of BlendSwap), CC BY 3.0 (the rest:
Scopia, Reallusion, Kator Legaz, contributors of BlendSwap).
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import tempfile
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from stream4d.errors import TrainingError

logger = logging.getLogger(__name__)

PACKAGE = "sweethome3d-furniture"
DEFAULT_FOLDER = Path.home() / ".cache" / "stream4d" / "furniture"
_ENTRY = re.compile(r"^(\w+)#(\d+)=(.*)$", re.MULTILINE)
_LARGEST_BYTES = 3_000_000
"""Models with longer files have too many triangles for what they show."""
_INDOORS = frozenset(
    ("Bathroom", "Bedroom", "Kitchen", "Lights", "Living room", "Miscellaneous", "Office")
)
_OUTDOOR_NAMES = re.compile(
    r"lamppost|street|park light|container|fence|chimney|railing|mower|flipper|pool|number lock"
)
_TABLE = re.compile(r"table|desk|island|workbench", re.IGNORECASE)
_SEAT = re.compile(r"chair|stool|seat\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Piece:
    """One model of the catalogue. Unturned, it stands on z = 0 around the origin with its front towards -y."""

    name: str
    category: str
    model: Path
    """Wavefront .obj file."""
    size: tuple[float, float, float]
    """Width (x), depth (y), height (z) in metres."""
    elevation: float
    """Height of its lower edge over the floor in metres; above zero for what hangs on a wall or a ceiling."""
    turn: tuple[float, ...] | None
    """Rotation matrix, row by row, that sets the model upright in its own (y up) axes."""

    @property
    def role(self) -> str:
        """``figure``, ``door``, ``hanging``, ``small``, ``table``, ``seat``, ``floor``, or ``none`` (left out)."""
        w, d, h = self.size
        if self.category == "Characters":
            return "figure" if max(w, d, h) < 2.0 and h > 0.2 else "none"  # no horses
        if self.category == "Doors and windows":
            return "door" if w < 2.0 and d < 0.4 else "none"
        if self.category not in _INDOORS or _OUTDOOR_NAMES.search(self.name.lower()):
            return "none"
        if self.elevation > 0.05:
            return "hanging" if max(w, d) < 2.2 else "none"
        if max(w, d, h) < 0.56:
            return "small" if max(w, d, h) > 0.06 else "none"
        if max(w, d) > 2.8 or h > 2.4:
            return "none"
        if _TABLE.search(self.name) and min(w, d) > 0.3:
            return "table"
        return "seat" if _SEAT.search(self.name) else "floor"


def read_catalogue(folder: Path) -> list[Piece]:
    """List the models of the unpacked libraries under ``folder`` (as ``fetch`` leaves them), always in the same order.

    Raises:
        TrainingError: there are none.
    """
    pieces = [
        piece
        for properties in sorted(folder.glob("*/PluginFurnitureCatalog.properties"))
        for piece in _read_library(properties)
    ]
    if not pieces:
        raise TrainingError(
            f"no furniture under {str(folder)!r}: fetch it with "
            f"`python -m stream4d.train.pathtraced.furniture {folder}`"
        )
    return pieces


def _read_library(properties: Path) -> list[Piece]:
    entries: dict[int, dict[str, str]] = defaultdict(dict)
    for key, number, value in _ENTRY.findall(properties.read_text("latin-1")):
        entries[int(number)][key] = value.strip()
    pieces = []
    for _, entry in sorted(entries.items()):
        model = properties.parent / entry["model"].lstrip("/")
        if not model.is_file() or model.stat().st_size > _LARGEST_BYTES:
            continue
        turn = entry.get("modelRotation")
        pieces.append(
            Piece(
                name=entry["name"],
                category=entry["category"],
                model=model,
                size=(  # centimetres
                    float(entry["width"]) / 100,
                    float(entry["depth"]) / 100,
                    float(entry["height"]) / 100,
                ),
                elevation=float(entry.get("elevation", 0)) / 100,
                turn=None if turn is None else tuple(float(x) for x in turn.split()),
            )
        )
    return pieces


def fetch(folder: Path) -> int:
    """Download and unpack the furniture; returns how many models there are.

    Raises:
        TrainingError: the package cannot be downloaded.
    """
    from stream4d.train.fetch_textures import download

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = download(PACKAGE, Path(scratch))
        for library in sorted(unpacked.rglob("*.sh3f")):
            with zipfile.ZipFile(library) as archive:
                archive.extractall(folder / library.stem)
        for licence in unpacked.rglob("copyright"):
            shutil.copyfile(licence, folder / f"LICENCE-{PACKAGE}.txt")
    return len(read_catalogue(folder))


def main() -> None:
    """Fetch the furniture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=DEFAULT_FOLDER, help="default: %(default)s"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("%d models in %s", fetch(args.folder), args.folder)


if __name__ == "__main__":
    main()
