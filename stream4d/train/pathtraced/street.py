"""One street at a time: built by its parts, filmed with traffic that the camera sees."""

from __future__ import annotations

import colorsys
import re
from pathlib import Path
from typing import Any

import numpy as np

from stream4d.packets import Array
from stream4d.train.pathtraced.furniture import Piece
from stream4d.train.pathtraced.roadway import Roadway
from stream4d.train.pathtraced.stage import Shot, Stage
from stream4d.train.pathtraced.street_builder import StreetBuilder, StreetShapes
from stream4d.train.pathtraced.street_parts import Street, street_role
from stream4d.train.pathtraced.street_plan import StreetPlanner
from stream4d.train.pathtraced.street_sky import SKY, light, surround
from stream4d.train.pathtraced.street_views import (
    StreetView,
    draw_view,
    follow,
    is_good,
    seen_share,
)
from stream4d.train.pathtraced.traffic import Mover, Traffic

_BODY = re.compile(
    r"firstcolor|first-color|color-ext|color-beige|paint|chapa|^car\b|body|whitebase|accent"
    r"|red-cabin|^yellow|^tap|cabin|^truck",
    re.IGNORECASE,
)
_CARGO = re.compile(r"container|payload|trailer", re.IGNORECASE)
_GLASS = re.compile(r"glass|cristales", re.IGNORECASE)


class StreetStage(Stage):
    """One street at a time in Blender's scene."""

    name = "street"
    far_m = 1000.0
    moving = 0.75

    def __init__(self, catalogue: list[Piece], photos: list[Path]) -> None:
        super().__init__(catalogue, photos)
        self._shapes = StreetShapes()
        self.street: Street

    # --- building ---------------------------------------------------------------------------------------

    def build(self, rng: np.random.Generator) -> None:
        """Clear the scene and build a street."""
        self.clear()
        self.use(rng)
        self.forget()
        self.street = StreetPlanner(rng, self._catalogue).fill()
        builder = StreetBuilder(self, self._paint, self.street, self._shapes)
        Roadway(self, self._paint, self.street).build()
        builder.build()
        surround(self, self._paint, self._shapes)
        light(self, self._paint)
        self.update()

    def _recolour(self, thing: Any, piece: Piece) -> None:
        """Paint vehicles anew, with dark windows; recolour some of the rest."""
        if street_role(piece) != "vehicle":
            super()._recolour(thing, piece)
            return
        rng, paint = self.rng, self._paint
        body = paint.plain(_car_colour(rng), float(rng.uniform(0.03, 0.2)))
        glass = paint.plain((float(rng.uniform(0.02, 0.12)),) * 3, float(rng.uniform(0.1, 0.35)))
        is_painted, is_advert = rng.random() < 0.75, rng.random() < 0.4
        cargo = paint.material(paint.photo(), mapped="Object", tile=2.5) if is_advert else None
        for slot in thing.material_slots:
            name = slot.material.name if slot.material is not None else ""
            new = None
            if _GLASS.search(name):
                new = glass
            elif _CARGO.search(name):
                new = cargo
            elif is_painted and _BODY.search(name):
                new = body
            if new is not None:
                slot.link = "OBJECT"
                slot.material = new

    # --- clips ------------------------------------------------------------------------------------------

    def shoot(
        self, rng: np.random.Generator, frames: int, aspect: float, moving: float
    ) -> Shot | None:
        """Draw a camera that sees something, and traffic that it sees."""
        self.use(rng)
        wanted = int(rng.choice([1, 2, 3, 4], p=[0.35, 0.3, 0.22, 0.13]))
        if rng.random() >= moving:
            wanted = 0
        for _ in range(40):
            view = draw_view(rng, self.street.road, frames)
            if not is_good(view, aspect, self.cast, SKY):
                continue
            movers, view = self._cast_traffic(view, aspect, wanted)
            if wanted and not movers:
                continue
            return self._stage_traffic(view, movers)
        return None

    def _cast_traffic(
        self, view: StreetView, aspect: float, wanted: int
    ) -> tuple[list[Mover], StreetView]:
        """Draw movers that the camera sees; now and then it turns after the first."""
        rng = self.rng
        traffic = Traffic(rng, self.street, self._catalogue, view.ego)
        movers: list[Mover] = []
        follows = wanted and view.kind == "pavement" and rng.random() < 0.4
        for _ in range(30 * wanted):
            if len(movers) == wanted:
                break
            mover = traffic.draw(movers)
            if mover is None:
                continue
            seen_from = view
            if follows and not movers:
                seen_from = follow(view, mover.path, 0.5 * mover.piece.size[2], rng)
            if not self._is_seen(seen_from, aspect, mover):
                continue
            if seen_from is not view:
                if not is_good(seen_from, aspect, self.cast, SKY):
                    continue
                view = seen_from
            movers.append(mover)
        return movers, view

    def _is_seen(self, view: StreetView, aspect: float, mover: Mover) -> bool:
        seen = [
            seen_share(
                view.world_from_cam[t],
                view.fov_rad,
                aspect,
                mover.path[t],
                mover.piece.size,
                self.cast,
            )
            for t in (0, -1)
        ]
        shares, areas = zip(*seen, strict=True)
        enough = min(shares) > 0.25 or (max(shares) > 0.4 and self.rng.random() < 0.25)
        return enough and max(areas) > 0.004 and max(areas) < 0.6

    def _stage_traffic(self, view: StreetView, movers: list[Mover]) -> Shot:
        """Put the movers on the set."""
        self.forget()
        things: list[Any] = []
        paths: list[Array] = []
        for mover in movers:
            thing = self.add_piece(mover.piece, tuple(mover.path[0, :3, 3]), 0.0, 1.0)
            if thing is None:
                continue
            thing.pass_index = len(things) + 1
            things.append(thing)
            paths.append(mover.path)
        self.update()
        return Shot(view.world_from_cam, view.fov_rad, things, paths)


def _car_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw a paint: white to black for most, else a colour."""
    if rng.random() < 0.6:
        grey = float(np.exp(rng.uniform(np.log(0.015), np.log(0.85))))
        return grey, grey, float(min(1.0, grey * rng.uniform(0.95, 1.15)))
    red, green, blue = colorsys.hsv_to_rgb(
        rng.uniform(), rng.uniform(0.4, 0.95), rng.uniform(0.1, 0.8)
    )
    return red, green, blue
