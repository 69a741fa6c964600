"""A simulated car: how it moves, what its sensors report, what a careful driver does, and rows of drives."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anyformer import recipe_loading
from anyformer.data.tables import datasets
from anyformer.data.tables.batches import value_key
from anyformer.data.tables.car import (
    COLUMN,
    LANE,
    PIXELS,
    SCHEMA,
    SEEN,
    STEP,
    VEHICLES,
    Drive,
    act_expert,
    drive_rows,
    sense,
    start_drive,
)


def make_straight(kind: str = "car", others: tuple[tuple[float, float], ...] = (), **place: float) -> Drive:
    """Return a drive along the x axis, with others at these metres and speeds."""
    road = np.column_stack([np.arange(200.0), np.zeros(200), np.zeros(200)])
    return Drive(
        road, kind, np.array(others, float).reshape(-1, 2), **{"x": 0, "y": 0, "heading": 0, "speed": 10} | place
    )


def test_a_truck_turns_less_and_brakes_less():
    for kind, vehicle in VEHICLES.items():
        drive = make_straight(kind)
        drive.move(0.1, -100.0)
        assert drive.heading == pytest.approx(10 * np.tan(0.1) / vehicle.wheelbase * STEP)
        assert drive.speed == pytest.approx(10 - vehicle.braking * STEP) and drive.y > 0, "to the left"
        assert drive.wheels == [(drive.speed, pytest.approx(drive.heading / STEP))]
    assert VEHICLES["truck"].wheelbase > VEHICLES["car"].wheelbase and VEHICLES["truck"].braking < 6


def test_the_driver_steers_by_the_length_of_the_vehicle():
    """Beside the middle, the same road needs more of a truck's wheel."""
    angles = {kind: act_expert(make_straight(kind, y=0.5))[0] for kind in VEHICLES}
    ratio = VEHICLES["truck"].wheelbase / VEHICLES["car"].wheelbase
    assert angles["car"] < 0 and np.tan(angles["truck"]) == pytest.approx(ratio * np.tan(angles["car"]))


@pytest.mark.parametrize("kind", VEHICLES)
def test_the_driver_comes_to_the_end_behind_others(kind: str):
    drive, ends = start_drive(3, kind), ""
    for _ in range(900):
        drive.move(*act_expert(drive))
        if ends := drive.judge():
            break
    assert ends == "done"


def test_what_becomes_of_a_drive():
    assert make_straight().judge() == "" and make_straight(x=160).judge() == "done"
    assert make_straight(y=LANE - 0.1).judge() == "" and make_straight(y=-LANE - 0.1).judge() == "off the road"
    near = ((4.0, 0.0),)
    assert make_straight(others=near).judge() == "collision" and make_straight(others=near, x=5).judge() == ""


def test_the_radar_is_a_set_of_those_in_front():
    drive = make_straight("car", ((10.0, 4.0), (20.0, 12.0), (90.0, 5.0)), x=5)
    returns = sense(drive, np.random.default_rng(0))["radar"]
    assert sorted(returns[:, 0].round().astype(int)) == pytest.approx([5, 15], abs=1) and len(returns) == 2
    assert sorted(returns[:, 2]) == pytest.approx([-6, 2], abs=1), "relative to this car"
    assert "radar" not in sense(make_straight("car", ((10.0, 4.0),), x=15), np.random.default_rng(0))
    assert "radar" not in sense(make_straight("car", ((SEEN + 1, 4.0),)), np.random.default_rng(0))


def test_the_camera_shows_the_lane_where_it_is_and_the_map_where_it_is_thought_to_be():
    for y in (0.0, 1.0):
        row = sense(make_straight(y=y, map_error=2.0), np.random.default_rng(0))
        bright = row["camera"].mean(0)
        left, right = (round(PIXELS / 2 - 0.5 - (side - y) / COLUMN) for side in (LANE, -LANE))
        assert {left, right} <= set(np.argsort(bright)[-4:]), bright
        assert row["camera"].shape == (PIXELS, PIXELS) and row["map"][:, 1] == pytest.approx(2.0 - y, abs=0.4)
    seen = sense(make_straight(others=((21.0, 0.0),)), np.random.default_rng(0))["camera"]
    (rows,) = np.nonzero(seen[:, PIXELS // 2] > 110)
    assert rows.tolist() == [PIXELS - 1 - row for row in (11, 10, 9)], "20 to 23 metres ahead"


def test_rows_of_drives_are_the_same_each_time_and_are_read(monkeypatch: pytest.MonkeyPatch):
    rows, again = list(drive_rows(2)), list(drive_rows(1))
    assert len(rows) > 100 and all(np.array_equal(a["camera"], b["camera"]) for a, b in zip(rows, again))
    assert {row["vehicle"] for row in rows} == set(VEHICLES) and len({row["drive"] for row in rows}) == 2
    monkeypatch.setitem(datasets.NAMED_SETS, "drives", lambda: datasets.build_table("drives", lambda: rows, SCHEMA))
    recipe: Any = recipe_loading.load_recipe("multimodal")
    config = replace(recipe.PRESETS["car"], data="drives", fold="1/2")
    batch, state = next(recipe.batches(config, "val"))
    assert {value_key(field) for field in recipe.read_schema(config).fields} < set(batch)
    assert batch["present"].shape[1] == 16 + 6 + 8 + 1 + 1 and 0 < batch["present"].float().mean() < 1
    assert state["data"]
