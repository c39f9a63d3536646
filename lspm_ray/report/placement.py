"""Where labels go so that they cover neither each other nor what they name. Pure geometry, in points."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

_DIRECTIONS = 16
_RADII = (7.0, 12.0, 20.0, 32.0, 46.0, 64.0, 90.0)
_GRID_STEP = 6.0
_OWN = 5.0
_OTHERS = 9.0
"""Half the side of the square around a point that its own label, or another, may not enter."""


def place(points: Sequence[Point], sizes: Sequence[Point], obstacles: Sequence[Box], bounds: Box) -> list[Box]:
    """A box for each label, near its point, free of the other labels and of the obstacles where there is room.

    Greedy: labels of crowded points choose first, each takes the nearest free place, tried right, left, above and
    below before the directions between, then anywhere inside the bounds. Where all is full, the least overlap counts.

    Args:
        points: what the labels name; labels keep away from their own, and further away from those of others.
        sizes: width and height of each label.
        obstacles: more boxes to keep clear.
        bounds: boxes stay inside, if they fit at all.
    """
    order = sorted(range(len(points)), key=lambda i: (-_crowd(points, i), points[i], i))
    placed: dict[int, Box] = {}
    for index in order:
        markers = [_around(p, _OWN if i == index else _OTHERS) for i, p in enumerate(points)]
        taken = [*obstacles, *markers, *placed.values()]
        placed[index] = _nearest_free(points[index], sizes[index], taken, bounds)
    return [placed[index] for index in range(len(points))]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed to lie at least `gap` apart, between `low` and `high` if there is room."""
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    values = [positions[i] for i in order]
    for _ in range(2):
        for i in range(1, len(values)):
            values[i] = max(values[i], values[i - 1] + gap)
        overshoot = max(0.0, values[-1] - high) if values else 0.0
        if overshoot:
            values[-1] -= overshoot
            for i in range(len(values) - 2, -1, -1):
                values[i] = min(values[i], values[i + 1] - gap)
        if values and values[0] < low and (len(values) - 1) * gap <= high - low:
            values[0] = low
    result = [0.0] * len(values)
    for i, value in zip(order, values, strict=True):
        result[i] = value
    return result


def overlap(a: Box, b: Box) -> float:
    """The area two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _crowd(points: Sequence[Point], index: int) -> float:
    x, y = points[index]
    return sum(1 / (1 + math.hypot(x - other[0], y - other[1])) for other in points)


def _nearest_free(point: Point, size: Point, taken: Sequence[Box], bounds: Box) -> Box:
    best, least = _inside(_beside(point, size, 0.0, _RADII[0]), bounds), math.inf
    for box in _candidates(point, size, bounds):
        cost = sum(overlap(box, other) for other in taken)
        if cost == 0:
            return box
        if cost < least:
            best, least = box, cost
    return best


def _candidates(point: Point, size: Point, bounds: Box) -> list[Box]:
    turns = sorted(range(_DIRECTIONS), key=lambda k: (k % 8 != 0, k % 4 != 0, k % 2 != 0, k))
    angles = [2 * math.pi * k / _DIRECTIONS for k in turns]
    near = [_inside(_beside(point, size, angle, radius), bounds) for radius in _RADII for angle in angles]
    return near + _everywhere(point, size, bounds)


def _everywhere(point: Point, size: Point, bounds: Box) -> list[Box]:
    columns = max(0, int((bounds[2] - bounds[0] - size[0]) / _GRID_STEP))
    rows = max(0, int((bounds[3] - bounds[1] - size[1]) / _GRID_STEP))
    boxes = [
        _box(bounds[0] + i * _GRID_STEP, bounds[1] + j * _GRID_STEP, size)
        for i in range(columns + 1)
        for j in range(rows + 1)
    ]
    return sorted(boxes, key=lambda b: (math.dist(point, ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2)), b))


def _beside(point: Point, size: Point, angle: float, radius: float) -> Box:
    """The box whose side or corner nearest the point lies at this angle and distance."""
    dx, dy = math.cos(angle), math.sin(angle)
    x, y = point[0] + radius * dx, point[1] + radius * dy
    return _box(x - size[0] * (1 - dx) / 2, y - size[1] * (1 - dy) / 2, size)


def _inside(box: Box, bounds: Box) -> Box:
    width, height = box[2] - box[0], box[3] - box[1]
    left = max(bounds[0], min(box[0], bounds[2] - width))
    bottom = max(bounds[1], min(box[1], bounds[3] - height))
    return _box(left, bottom, (width, height))


def _around(point: Point, half: float) -> Box:
    return (point[0] - half, point[1] - half, point[0] + half, point[1] + half)


def _box(left: float, bottom: float, size: Point) -> Box:
    return (left, bottom, left + size[0], bottom + size[1])
