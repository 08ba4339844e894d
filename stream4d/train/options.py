"""Settings of the scene renderer."""

from __future__ import annotations

from dataclasses import dataclass

from stream4d.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneOptions:
    """What rendered clips look like. Speeds are apparent: fractions of the image width a frame."""

    fov_deg: tuple[float, float] = (35.0, 100.0)
    """Range of the horizontal field of view."""
    solids: tuple[int, int] = (10, 28)
    """Fewest and most solids in a scene."""
    movers: tuple[int, int] = (1, 5)
    """Fewest and most independently moving groups in a dynamic scene."""
    static_share: float = 0.15
    """Share of clips in which nothing but the camera moves."""
    figure_share: float = 0.3
    """Share of dynamic clips with a walking figure."""
    outdoor_share: float = 0.4
    """Share of clips on open ground; the rest are in rooms."""
    shadow_share: float = 0.75
    """Share of clips with cast shadows."""
    fog_share: float = 0.2
    """Share of clips with fog."""
    camera_weights: tuple[float, ...] = (1.0, 1.0, 2.5, 2.0, 1.0, 1.0, 1.0)
    """Weights of static, rotation, handheld, forward, orbit, lateral, drone."""
    camera_turn: tuple[float, float] = (0.0005, 0.06)
    """Apparent speed of camera rotation."""
    camera_move: tuple[float, float] = (0.001, 0.10)
    """Apparent speed, at typical depth, of camera translation."""
    mover_speed: tuple[float, float] = (0.002, 0.10)
    """Apparent speed of movers."""
    traffic_share: float = 0.0
    """Share of movers that travel along the camera's path, either way: only their depth tells them from what stands."""
    tiles: int = 32
    """Textures in an atlas."""
    atlases: int = 64
    """How many different atlases the seeds share; they draw from one pool of up to 1024 textures. Each texture takes
    some 20 ms when it is first needed; putting an atlas together takes 0.1 s, the last four are kept."""
    photo_dir: str | None = None
    """Folder of photos to cut textures from; None: procedural textures only."""
    photo_share: float = 0.6
    """Share of tiles that come from photos."""
    motion_blur_share: float = 0.35
    """Share of clips with motion blur."""
    jpeg_share: float = 0.4
    """Share of clips with compression artefacts."""
    effects: bool = True
    """Add blur, noise, exposure drift and other traces of real cameras."""

    def __post_init__(self) -> None:
        for name in (
            "static_share",
            "figure_share",
            "traffic_share",
            "outdoor_share",
            "shadow_share",
            "fog_share",
            "photo_share",
            "motion_blur_share",
            "jpeg_share",
        ):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {value}")
        for name in ("fov_deg", "solids", "movers", "camera_turn", "camera_move", "mover_speed"):
            low, high = getattr(self, name)
            if not 0 < low <= high and not (name == "movers" and 0 <= low <= high):
                raise ConfigError(f"{name} must be a range of positive numbers, got {(low, high)}")
        if (
            len(self.camera_weights) != 7
            or min(self.camera_weights) < 0
            or not sum(self.camera_weights)
        ):
            raise ConfigError(f"camera_weights must be 7 weights, got {self.camera_weights}")
        if self.atlases < 1:
            raise ConfigError(f"atlases must be at least 1, got {self.atlases}")
        if self.tiles < 8:
            raise ConfigError(f"tiles must be at least 8, got {self.tiles}")
