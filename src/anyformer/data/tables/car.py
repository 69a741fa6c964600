"""A car on a road, simulated: what its sensors report, how a careful driver steers, and what becomes of it.

The road bends at random. Other cars stand or drive on it, slower than this one, which keeps its lane and its distance.
Two kinds of vehicle drive differently: a truck is longer, so that the same wheel angle turns it less, and it brakes
with half the force. Five sensors:

    camera    16 x 16 pixels of the road ahead, seen from above: lane lines, other cars
    radar     a set of returns, from none to six: distance and side of other cars, speed relative to this one
    map       eight points of the lane's middle ahead; all of a drive are off to the same side by the error of the
              position, about 0.8 m, so that the lane itself must be seen
    vehicle   car or truck
    wheels    speed and turning rate of the last eight steps

Units: metres, seconds, radians. Angles grow to the left. The kinematic bicycle model: Kong et al. 2015.

Shapes: N points of the road.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCHEMA = """\
group = "drive"
[fields]
camera = { kind = "image", height = 16, width = 16, patch = 4 }
radar = { kind = "series", channels = 3, rate = 1.0, seconds = 6.0, patch = 1, position = "none" }
map = { kind = "series", channels = 2, rate = 1.0, seconds = 8.0, patch = 1 }
vehicle = { kind = "category" }
wheels = { kind = "series", channels = 2, rate = 10.0, seconds = 0.8, patch = 8 }
[targets]
steering = { kind = "number" }
acceleration = { kind = "number" }
"""
STEP = 0.1  # seconds
SPACING = 1.0  # between points of the road
LANE = 1.75  # from the middle of the lane to its edge
SEEN = 32.0  # what camera and radar reach, to the front
PIXELS, ROW, COLUMN = 16, 2.0, 0.75  # of the camera, and the metres of a pixel to the front and to the side
SPEED, LATERAL = 12.0, 2.5  # wished on a straight road; the acceleration to the side that a curve may have
GAP, HEADWAY = 6.0, 1.2  # to the car in front: metres, and seconds
MAX_ANGLE = 0.6
SENSORS = ("camera", "radar", "map", "vehicle", "wheels")


@dataclass(frozen=True)
class Vehicle:
    """How a kind of vehicle moves."""

    wheelbase: float
    braking: float
    """The strongest, in m/s²."""
    pull: float
    """The strongest acceleration."""
    half_length: float


VEHICLES = {"car": Vehicle(2.7, 6.0, 2.5, 2.2), "truck": Vehicle(6.5, 3.0, 1.0, 4.5)}


@dataclass
class Drive:
    """A vehicle on a road with others. `road` (N, 3): x, y and direction of the lane's middle."""

    road: np.ndarray
    kind: str
    others: np.ndarray
    """(M, 2): where along the road other cars are, and how fast they go."""
    x: float
    y: float
    heading: float
    speed: float
    map_error: float = 0.0
    """How far to the left the map is."""
    wheels: list[tuple[float, float]] = field(default_factory=list)

    @property
    def vehicle(self) -> Vehicle:
        return VEHICLES[self.kind]

    def locate(self) -> tuple[int, float]:
        """Return the nearest point of the road, and how far left of it this car is."""
        dx, dy = self.x - self.road[:, 0], self.y - self.road[:, 1]
        i = int(np.argmin(dx**2 + dy**2))
        direction = self.road[i, 2]
        return i, float(dy[i] * np.cos(direction) - dx[i] * np.sin(direction))

    def move(self, steering: float, acceleration: float) -> None:
        """Drive one step."""
        v = self.vehicle
        steering = float(np.clip(steering, -MAX_ANGLE, MAX_ANGLE))
        acceleration = float(np.clip(acceleration, -v.braking, v.pull))
        rate = self.speed * np.tan(steering) / v.wheelbase
        self.heading += rate * STEP
        self.x += self.speed * np.cos(self.heading) * STEP
        self.y += self.speed * np.sin(self.heading) * STEP
        self.speed = max(0.0, self.speed + acceleration * STEP)
        self.others[:, 0] += self.others[:, 1] * STEP
        self.wheels = [*self.wheels[-7:], (self.speed, rate)]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return points (N, 2) as this car sees them: metres ahead, and to the left."""
        dx, dy = points[:, 0] - self.x, points[:, 1] - self.y
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return np.stack([dx * cos + dy * sin, dy * cos - dx * sin], 1)

    def place(self, along: np.ndarray) -> np.ndarray:
        """Return where places along the road are: (M,) -> (M, 3)"""
        return self.road[np.clip((along / SPACING).astype(int), 0, len(self.road) - 1)]

    def find_gap(self) -> tuple[float, float]:
        """Return how far the next car in front is, from bumper to bumper, and its speed; infinity where none is."""
        i, _ = self.locate()
        ahead = self.others[self.others[:, 0] > i * SPACING]
        if not len(ahead):
            return np.inf, 0.0
        distance, speed = ahead[np.argmin(ahead[:, 0])]
        return float(distance - i * SPACING - self.vehicle.half_length - 2.2), float(speed)

    def judge(self) -> str:
        """Return what has happened: "off the road", "collision", "done" at the end of the road, or nothing."""
        i, side = self.locate()
        if abs(side) > LANE:
            return "off the road"
        if self.find_gap()[0] <= 0:
            return "collision"
        return "done" if i >= len(self.road) - 50 else ""


def start_drive(seed: int, kind: str = "", length: int = 300) -> Drive:
    """Make a road of so many metres, and others on it; every second vehicle is a truck, where its kind is not
    named."""
    rng = np.random.default_rng((11, seed))
    kind = kind or ("car", "truck")[seed % 2]
    curvature = np.zeros(length + 50)
    start = 30
    while start < length:
        extent, sign = int(rng.integers(20, 50)), rng.choice([-1.0, 1.0])
        bend = sign * rng.uniform(0.01, 0.05) * np.sin(np.linspace(0, np.pi, extent))
        curvature[start : start + extent] = bend[: max(0, len(curvature) - start)]
        start += extent + int(rng.integers(0, 30))
    direction = np.cumsum(curvature) * SPACING
    steps = SPACING * np.stack([np.cos(direction), np.sin(direction)], 1)
    road = np.column_stack([np.cumsum(steps, 0) - steps[0], direction])
    count = int(rng.integers(2, 6))
    others = np.column_stack([np.sort(rng.uniform(40, length, count)), rng.uniform(3, 9, count)])
    return Drive(
        road,
        kind,
        others,
        0.0,
        rng.uniform(-0.4, 0.4),
        rng.uniform(-0.05, 0.05),
        rng.uniform(6, 12),
        rng.normal(0, 0.8),
    )


def act_expert(drive: Drive) -> tuple[float, float]:
    """Return steering and acceleration of a careful driver, who knows the road and the others exactly."""
    i, _ = drive.locate()
    reach = max(5.0, 0.8 * drive.speed)
    ((ahead, left),) = drive.project(drive.road[[min(len(drive.road) - 1, i + round(reach / SPACING))], :2])
    steering = np.arctan(2 * drive.vehicle.wheelbase * left / (ahead**2 + left**2))  # pure pursuit
    bends = np.abs(np.diff(drive.road[i : i + 25, 2])) / SPACING
    wished = min(SPEED, np.sqrt(LATERAL / max(1e-3, bends.max(initial=0.0))))
    gap, other = drive.find_gap()
    acceleration = 1.0 * (wished - drive.speed)
    if gap < SEEN:
        room = gap - GAP - HEADWAY * drive.speed * 6.0 / drive.vehicle.braking / 1.5
        acceleration = min(acceleration, 0.5 * room + 1.2 * (other - drive.speed))
    acceleration = np.clip(acceleration, -drive.vehicle.braking, drive.vehicle.pull)
    return float(np.clip(steering, -MAX_ANGLE, MAX_ANGLE)), float(acceleration)


def sense(drive: Drive, rng: np.random.Generator) -> dict[str, Any]:
    """Return what the sensors report, with their noise; a radar that sees nobody reports nothing."""
    i, _ = drive.locate()
    ahead = drive.road[np.minimum(i + 4 * np.arange(1, 9), len(drive.road) - 1), :2]
    row: dict[str, Any] = {
        "camera": draw_camera(drive, i, rng),
        "map": drive.project(ahead) + rng.normal(0, 0.1, (8, 2)) + [0, drive.map_error],
        "vehicle": drive.kind,
        "wheels": np.array(drive.wheels or [(drive.speed, 0.0)]) + rng.normal(0, 0.05, (len(drive.wheels) or 1, 2)),
    }
    others = drive.place(drive.others[:, 0])
    points = drive.project(others[:, :2])
    speeds = drive.others[:, 1] * np.cos(others[:, 2] - drive.heading) - drive.speed
    returns = np.column_stack([points, speeds])[(points[:, 0] > 0) & (points[:, 0] < SEEN)]
    if len(returns):
        row["radar"] = rng.permutation(returns + rng.normal(0, 0.3, returns.shape))
    return row


def draw_camera(drive: Drive, i: int, rng: np.random.Generator) -> np.ndarray:
    """Return the picture of the camera, its first row the farthest: the ground is dark, lines gray, cars white."""
    picture = rng.uniform(0, 40, (PIXELS, PIXELS))
    points = drive.road[max(0, i - 4) : i + int(SEEN) + 8]
    normal = np.stack([-np.sin(points[:, 2]), np.cos(points[:, 2])], 1)
    for side in (-LANE, LANE):
        paint(picture, drive.project(points[:, :2] + side * normal), 150)
    others = drive.place((drive.others[:, :1] + np.arange(-2, 2.5, 0.5)).ravel())
    paint(picture, drive.project(others[:, :2]), 255)
    return picture.astype(np.uint8)


def paint(picture: np.ndarray, points: np.ndarray, gray: int) -> None:
    """Draw points (N, 2), metres ahead and to the left, each shared out between the two pixels beside it."""
    rows = PIXELS - 1 - np.floor(points[:, 0] / ROW).astype(int)
    place = PIXELS / 2 - 0.5 - points[:, 1] / COLUMN
    left = np.floor(place).astype(int)
    for columns, share in ((left, left + 1 - place), (left + 1, place - left)):
        inside = (rows >= 0) & (rows < PIXELS) & (columns >= 0) & (columns < PIXELS)
        np.maximum.at(picture, (rows[inside], columns[inside]), gray * share[inside])


def drive_rows(drives: int, every: int = 4, max_steps: int = 500) -> Iterator[dict[str, Any]]:
    """Yield what the sensors report and what the driver does, every so many steps of some drives. Pushes from the side
    and wrong pedals, which the driver corrects, show what to do where a model has gone wrong."""
    for seed in range(drives):
        drive, rng = start_drive(seed), np.random.default_rng((12, seed))
        push, offset = 0.0, int(rng.integers(every))
        for step in range(max_steps):
            if drive.judge():
                break
            steering, acceleration = act_expert(drive)
            if step % every == offset:
                yield sense(drive, rng) | {"steering": steering, "acceleration": acceleration, "drive": str(seed)}
            if step % 15 == 0:
                push = float(rng.normal(0, 0.12) * rng.integers(2))
            drive.move(steering + push * drive.vehicle.wheelbase / 4, acceleration + 10 * push)
