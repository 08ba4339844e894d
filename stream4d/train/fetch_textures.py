"""Fetch photos for textures out of Debian packages, without installing anything.

Run as ``python -m stream4d.train.fetch_textures FOLDER`` on a Debian or Ubuntu system (needs ``apt-get`` and
``dpkg-deb``). The pictures stay in that folder and are never part of this package. Their licences are copied
beside them (``LICENCE-<package>.txt``): GPL-2+, LGPL-3 and CC BY-SA at the time of writing; read them before
passing the pictures on.
"""

from __future__ import annotations

import argparse
import io
import logging
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from stream4d.errors import MissingDependencyError, TrainingError
from stream4d.packets import Array

logger = logging.getLogger(__name__)

WALLPAPERS = ("mate-backgrounds", "plasma-workspace-wallpapers", "lomiri-wallpapers")
"""Packages of photos and drawings, 140 MB together."""
TERRAIN = "0ad-data"
"""Package with about a thousand photographed ground, rock and plant textures (CC BY-SA 3.0), 1.4 GB."""
DEFAULT_FOLDER = Path.home() / ".cache" / "stream4d" / "textures"
_SHORT_SIDE = 1024
_TEXTURES = re.compile(r"art/textures/(terrain/types|skins/structural|skins/gaia)/.*\.dds$")
_NO_COLOUR = re.compile(r"norm|spec|_ao|alpha|parallax|height")


def download(package: str, folder: Path) -> Path:
    """Download a package with apt-get and unpack it under ``folder``; returns where it was unpacked.

    Raises:
        TrainingError: no apt-get or dpkg-deb, no network, or an unknown package.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise TrainingError(
                f"{tool!r} is not installed: textures can be fetched on Debian and Ubuntu only; "
                "any other folder of photos will do as well"
            )
    got = subprocess.run(
        ["apt-get", "download", package], cwd=folder, capture_output=True, text=True
    )
    archives = sorted(folder.glob(f"{package}_*.deb"))
    if got.returncode or not archives:
        raise TrainingError(
            f"apt-get download {package} failed: {got.stderr.strip().splitlines()[-1:] or got.returncode}; "
            "try `apt-get update` first"
        )
    target = folder / package
    target.mkdir()
    subprocess.run(
        ["dpkg-deb", "-x", str(archives[0]), str(target)], check=True, capture_output=True
    )
    archives[0].unlink()
    return target


def is_rich(image: Array) -> bool:
    """Return whether a picture has colour contrast and fine structure enough to serve as a texture."""
    small = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32)
    edges = np.abs(np.diff(small, axis=0)).mean() + np.abs(np.diff(small, axis=1)).mean()
    return bool(small.std() > 12 and edges > 2.5)


def save(image: Array, path: Path) -> bool:
    """Write a picture as JPEG with its short side at most 1024; returns False where it is too plain to be of use."""
    if min(image.shape[:2]) < 128 or not is_rich(image):
        return False
    scale = _SHORT_SIDE / min(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return bool(cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 92]))


def _wallpapers(unpacked: Path) -> Iterator[tuple[str, Array]]:
    """Yield the largest version of each picture, by name."""
    largest: dict[str, Path] = {}
    for path in sorted(unpacked.rglob("*")):
        if path.suffix.lower() not in {".jpg", ".jpeg", ".png"} or path.stem == "screenshot":
            continue
        is_size = re.fullmatch(r"\d+x\d+", path.stem)  # …/NAME/contents/images/1920x1080.png
        name = path.parents[2].name if is_size else re.sub(r"_\d+x\d+$", "", path.stem)
        if name not in largest or path.stat().st_size > largest[name].stat().st_size:
            largest[name] = path
    for name, path in sorted(largest.items()):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is not None:
            yield name, image


def _terrain(unpacked: Path) -> Iterator[tuple[str, Array]]:
    """Yield the colour textures of the game data, which are DDS files in a zip."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "pillow", needed_for="reading DDS textures", extra="train"
        ) from error
    archive = next(unpacked.rglob("public.zip"), None)
    if archive is None:
        raise TrainingError(f"no public.zip in {TERRAIN}: its layout has changed")
    with zipfile.ZipFile(archive) as pack:
        for entry in pack.namelist():
            if not _TEXTURES.search(entry) or _NO_COLOUR.search(Path(entry).name):
                continue
            image = np.asarray(Image.open(io.BytesIO(pack.read(entry))).convert("RGB"))[..., ::-1]
            if (image.max(-1).astype(int) - image.min(-1)).mean() > 6:  # grey ones are shading maps
                yield Path(entry).name.split(".")[0], np.ascontiguousarray(image)


def fetch(folder: Path, *, terrain: bool = False) -> int:
    """Fill ``folder`` with pictures; returns how many there are.

    Raises:
        TrainingError: a package cannot be downloaded.
        MissingDependencyError: ``terrain`` without Pillow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for package in (*WALLPAPERS, *([TERRAIN] if terrain else [])):
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = download(package, Path(scratch))
            pictures = _terrain(unpacked) if package == TERRAIN else _wallpapers(unpacked)
            kept = sum(save(image, folder / f"{package}-{name}.jpg") for name, image in pictures)
            for licence in unpacked.rglob("copyright"):
                shutil.copyfile(licence, folder / f"LICENCE-{package}.txt")
        logger.info("%s: %d pictures", package, kept)
        count += kept
    return count


def main() -> None:
    """Fetch photos for textures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=DEFAULT_FOLDER, help="default: %(default)s"
    )
    parser.add_argument("--terrain", action="store_true", help=f"also fetch {TERRAIN} (1.4 GB)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    count = fetch(args.folder, terrain=args.terrain)
    logger.info("%d pictures in %s: give it as SceneOptions(photo_dir=…)", count, args.folder)


if __name__ == "__main__":
    main()
