"""Rendered streets, without Blender: roads, what stands along them, what drives on them, and who films."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.train.pathtraced import street_surfaces, surfaces
from stream4d.train.pathtraced.footprints import Footprint, share_ground
from stream4d.train.pathtraced.road import Lane, Road, draw_road
from stream4d.train.pathtraced.street_parts import Street, street_role
from stream4d.train.pathtraced.street_plan import KINDS, StreetPlanner
from stream4d.train.pathtraced.street_views import StreetView, draw_view, is_good, seen_share
from stream4d.train.pathtraced.traffic import SPEED_M, Mover, Traffic, lane_path, upright
from tests.pieces import piece

FRAMES = 4


CATALOGUE = [
    piece("Van", "Vehicles", 2.4, 6.0, 2.6),
    piece("Smart car", "Vehicles", 1.7, 2.5, 1.5),
    piece("Bus", "Vehicles", 2.8, 14.0, 3.7),
    piece("Bicycle", "Vehicles", 0.5, 1.5, 0.8),
    piece("Female", "Characters", 0.5, 0.4, 1.7),
    piece("Street lamp", "Lights", 0.4, 0.4, 2.5),
    piece("Bench", "Exterior", 1.7, 0.5, 0.5),
    piece("Hedge", "Exterior", 1.5, 0.6, 1.0),
    piece("Palm tree", "Exterior", 3.5, 3.1, 11.5),
    piece("Shipping container", "Miscellaneous", 2.4, 6.1, 2.6),
]
ROLES = ["vehicle"] * 4 + ["person", "lamp", "roadside", "green", "tree", "hall"]


def test_roles() -> None:
    assert [street_role(p) for p in CATALOGUE] == ROLES
    left_out = [
        piece("Fork lift", "Vehicles", 3.5, 1.3, 2.2),  # looks sideways
        piece("Skateboard", "Vehicles", 0.2, 0.8, 0.1),
        piece("Sitting male", "Characters", 0.8, 1.0, 1.3),
        piece("Horse", "Characters", 0.6, 2.6, 2.0),
        piece("Jacuzzi", "Exterior", 2.3, 2.3, 0.9),
        piece("Wardrobe", "Bedroom", 1.2, 0.6, 2.0),
    ]
    assert {street_role(p) for p in left_out} == {"none"}


# --- ground and roads -----------------------------------------------------------------------------------


def test_footprints_share_ground() -> None:
    square = Footprint(0, 0, 0, 2, 2)
    assert share_ground(square, Footprint(1.9, 0, 0, 2, 2))
    assert not share_ground(square, Footprint(2.1, 0, 0, 2, 2))
    # A diamond's upright box overlaps the square's corner, the diamond does not.
    assert not share_ground(square, Footprint(2, 2, np.pi / 4, 2, 2))
    assert share_ground(square, Footprint(1.6, 1.6, np.pi / 4, 2, 2))
    assert share_ground(square, square.grown(-0.9))
    np.testing.assert_allclose(np.ptp(Footprint(1, 2, np.pi / 2, 4, 1).corners, 0), [1, 4])


def road(curvature: float = 0.0, junction: float | None = None) -> Road:
    return Road(
        curvature=curvature,
        reach=40.0,
        is_closed=False,
        lanes=(Lane(-1.5, 1), Lane(1.5, -1)),
        lane_width=3.0,
        parking=(2.0, 0.0),
        pavement=(2.5, 1.5),
        kerb=0.1,
        junction=junction,
    )


@pytest.mark.parametrize("curvature", [0.0, 1 / 50, -1 / 30])
def test_places_beside_a_road_are_found_again(curvature: float) -> None:
    street = road(curvature)
    s, d = np.meshgrid(np.linspace(-39, 39, 9), np.linspace(-12, 12, 7))
    places = street.at(s, d)
    for got, want in zip(street.locate(places), (s, d), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)
    step = street.at(s + 1e-4, d) - street.at(s, d)
    np.testing.assert_allclose(np.linalg.norm(step, axis=-1), 1e-4 * (1 - curvature * d), rtol=1e-4)
    np.testing.assert_allclose(np.arctan2(step[..., 1], step[..., 0]), street.heading(s), atol=1e-4)


def test_bands_across_a_road() -> None:
    street = road(junction=10.0)
    assert street.half_width == 3.0
    assert (street.kerb_at(-1), street.kerb_at(1)) == (5.0, 3.0)
    assert (street.pavement_end(-1), street.pavement_end(1)) == (7.5, 4.5)
    inside = street.is_drivable(np.array([[0, 2.9], [0, 3.1], [10, 20], [14, 20], [41, 0]]))
    np.testing.assert_array_equal(inside, [True, False, True, False, False])


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("curvature", [0.0, 1 / 40, -1 / 25])
def test_who_drives_stays_on_the_lane(curvature: float, way: int) -> None:
    street, lane = road(curvature), Lane(-1.5 * way, way)
    places, headings = lane_path(street, lane, 5.0, 0.8, 6)
    s, d = street.locate(places)
    np.testing.assert_allclose(d, lane.d, atol=1e-9)
    assert (np.sign(np.diff(s)) == way).all()
    step = np.diff(places, axis=0)
    chord = 2 / abs(curvature) * np.sin(0.4 * abs(curvature)) if curvature else 0.8
    # The chord of the lane's arc; its own radius differs from the road's by 1.5 m.
    np.testing.assert_allclose(np.linalg.norm(step, axis=1), chord, rtol=1e-4)
    along = np.stack([np.cos(headings), np.sin(headings)], -1)
    assert ((step * along[:-1]).sum(1) > 0.79).all()


def test_vehicles_look_where_they_drive() -> None:
    poses = upright(np.array([[1.0, 2.0]]), np.array([0.6]), 0.1)
    np.testing.assert_allclose(poses[0] @ [0, -1, 0, 1], [1 + np.cos(0.6), 2 + np.sin(0.6), 0.1, 1])
    assert np.linalg.det(poses[0, :3, :3]) == pytest.approx(1)


# --- plans ----------------------------------------------------------------------------------------------


def plan(seed: int) -> Street:
    return StreetPlanner(np.random.default_rng(seed), CATALOGUE).fill()


def test_streets_are_repeatable_with_free_lanes_and_ground_of_ones_own() -> None:
    kinds, things = set(), 0
    for seed in range(14):
        street = plan(seed)
        assert street.things == plan(seed).things
        kinds.add(street.kind)
        things += len(street.things)
        for i, thing in enumerate(street.things):
            assert not street.road.is_drivable(thing.ground.corners).any()
            assert not any(share_ground(thing.ground, other.ground) for other in street.things[:i])
            if street.road.side_road is not None:
                assert not share_ground(thing.ground, street.road.side_road)
    assert kinds == set(KINDS)
    assert things > 14 * 40


def test_an_empty_catalogue_still_makes_a_street() -> None:
    street = StreetPlanner(np.random.default_rng(1), []).fill()
    assert {thing.kind for thing in street.things} <= {"house", "tree", "wall", "pole", "sign"}


# --- cameras and traffic --------------------------------------------------------------------------------


def views(count: int) -> list[tuple[Street, StreetView]]:
    rng = np.random.default_rng(4)
    streets = [plan(seed) for seed in range(8)]
    return [(streets[i % 8], draw_view(rng, streets[i % 8].road, FRAMES)) for i in range(count)]


def test_cameras() -> None:
    kinds: dict[str, int] = {}
    speeds = []
    for street, view in views(160):
        kinds[view.kind] = kinds.get(view.kind, 0) + 1
        R, t = view.world_from_cam[:, :3, :3], view.world_from_cam[:, :3, 3]
        np.testing.assert_allclose(
            R @ R.transpose(0, 2, 1), np.tile(np.eye(3), (4, 1, 1)), atol=1e-9
        )
        assert np.radians(30) <= view.fov_rad <= np.radians(90)
        assert R[0, 2, 1] < 0  # y of the camera points down
        if view.kind == "dash":
            assert ((t[:, 2] > 1.1) & (t[:, 2] < 2.3)).all()
            assert street.road.is_drivable(t[:, :2]).all()
            assert SPEED_M[0] * 0.99 <= view.ego.speed <= SPEED_M[1]
            steps = np.linalg.norm(np.diff(t[:, :2], axis=0), axis=1)
            np.testing.assert_allclose(steps, view.ego.speed, rtol=0.02)
            speeds.append(view.ego.speed)
        if view.kind == "tripod":
            np.testing.assert_allclose(view.world_from_cam, view.world_from_cam[:1].repeat(4, 0))
    assert set(kinds) == {"dash", "pavement", "tripod", "drone"}
    assert kinds["dash"] > 0.4 * 160
    assert np.quantile(speeds, 0.2) < 0.3 < 0.7 < np.quantile(speeds, 0.8)


def drawn_traffic() -> list[tuple[Street, StreetView, list[Mover]]]:
    rng = np.random.default_rng(9)
    drawn = []
    for street, view in views(100):
        traffic = Traffic(rng, street, CATALOGUE, view.ego)
        movers: list[Mover] = []
        for _ in range(25):
            mover = traffic.draw(movers)
            if mover is not None and len(movers) < 4:
                movers.append(mover)
        drawn.append((street, view, movers))
    return drawn


def test_traffic_keeps_to_the_road_and_clear_of_all() -> None:
    kinds = set()
    for street, view, movers in drawn_traffic():
        for i, mover in enumerate(movers):
            kinds.add(mover.kind)
            walks = mover.kind in ("walking", "stepping")
            step = np.diff(mover.path[:, :2, 3], axis=0)
            speed = np.linalg.norm(step, axis=1)
            low, high = (0.019, 0.13) if walks else (0.014, 1.25 * SPEED_M[1])
            assert ((speed > low) & (speed < high)).all(), mover.kind
            # Nobody slides sideways: the front, -y, goes ahead, but for a drift within the lane.
            ahead = -mover.path[:-1, :2, 1]
            assert ((ahead * step).sum(1) > 0.9 * speed).all(), mover.kind
            for t, ground in enumerate(mover.grounds):
                if not walks:
                    assert street.road.is_drivable(ground.corners, 0.8).all()
                others = [other.grounds[t] for other in movers[:i]]
                others += [view.ego.grounds[t]] if view.ego.grounds else []
                assert not any(share_ground(ground, other) for other in others)
    assert kinds == {"along", "oncoming", "crossing", "turning", "walking", "stepping"}


def test_traffic_is_repeatable_and_some_of_it_is_as_fast_as_the_camera() -> None:
    first, again = drawn_traffic(), drawn_traffic()
    gains = []
    for (_, view, movers), (_, _, same) in zip(first, again, strict=True):
        assert len(movers) == len(same)
        for mover, twin in zip(movers, same, strict=True):
            np.testing.assert_array_equal(mover.path, twin.path)
            if mover.kind == "along" and view.ego.lane is not None:
                step = np.linalg.norm(mover.path[1, :2, 3] - mover.path[0, :2, 3])
                gains.append(step / view.ego.speed)
    near = np.abs(np.array(gains) - 1) < 0.12
    assert 0.15 < near.mean() < 0.8
    assert min(gains) < 0.6
    assert max(gains) > 1.4


def test_what_is_seen_of_a_thing() -> None:
    camera = np.eye(4)
    camera[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]  # looks along +y
    camera[2, 3] = 1.0
    thing = upright(np.array([[0.0, 10.0]]), np.array([0.0]))[0]
    size = (2.0, 4.0, 1.5)
    share, area = seen_share(camera, 1.0, 1.0, thing, size, lambda *_: (np.inf, ""))
    assert share == 1
    assert 0.01 < area < 0.2
    assert seen_share(camera, 1.0, 1.0, thing, size, lambda *_: (3.0, "wall"))[0] == 0
    thing[1, 3] = -10.0
    assert seen_share(camera, 1.0, 1.0, thing, size, lambda *_: (np.inf, ""))[0] == 0


def test_views_of_nothing_but_sky_are_not_good() -> None:
    view = next(view for _, view in views(20) if view.kind == "dash")
    names = iter(f"thing {i}" for i in range(10_000))
    assert is_good(view, 4 / 3, lambda *_: (9.0, next(names)), "sky")
    assert not is_good(view, 4 / 3, lambda *_: (0.2, next(names)), "sky")
    assert not is_good(view, 4 / 3, lambda *_: (300.0, "sky"), "sky")


def test_kinds_of_roads() -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        roads = [draw_road(rng, kind) for _ in range(20)]
        assert all(r.is_closed == (kind in ("circle", "square")) for r in roads)
        assert all(r.is_square == (kind == "square") for r in roads)
        assert all(2.9 <= r.lane_width <= 3.6 for r in roads)


@pytest.mark.parametrize(
    "kind",
    [
        street_surfaces.asphalt,
        street_surfaces.road_paint,
        street_surfaces.paving,
        street_surfaces.lawn,
        street_surfaces.field,
        street_surfaces.leaves,
        street_surfaces.bark,
        street_surfaces.front,
        street_surfaces.shop,
        street_surfaces.roof,
        street_surfaces.sky,
    ],
)
def test_surfaces(kind: surfaces.Kind) -> None:
    first, again, other = (kind(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (surfaces.SIDE, surfaces.SIDE, 3)
    assert np.isfinite(first).all()
    assert 0.03 < first.mean() < 1.2
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.003
