import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from lspm_ray.report.placement import overlap, place, spread

BOUNDS = (0.0, 0.0, 400.0, 300.0)
points = st.lists(st.tuples(st.floats(5, 395), st.floats(5, 295)), min_size=1, max_size=10)


@settings(max_examples=40)
@given(points, st.data())
def test_labels_overlap_neither_each_other_nor_the_points_and_stay_inside(
    found: list[tuple[float, float]], data: st.DataObject
) -> None:
    sizes = [(data.draw(st.floats(15, 90)), 11.0) for _ in found]
    boxes = place(found, sizes, [], BOUNDS)
    for (width, height), box in zip(sizes, boxes, strict=True):
        assert abs(box[2] - box[0] - width) < 1e-9
        assert abs(box[3] - box[1] - height) < 1e-9
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= 400 + 1e-9
        assert box[3] <= 300 + 1e-9
    assert all(overlap(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(overlap(box, (x - 5, y - 5, x + 5, y + 5)) == 0 for box in boxes for x, y in found)


def test_a_lone_label_stands_right_of_its_point() -> None:
    (box,) = place([(100, 100)], [(40, 10)], [], BOUNDS)
    assert box == (107, 95, 147, 105)


def test_obstacles_are_avoided() -> None:
    wall = (101.0, 0.0, 400.0, 300.0)
    (box,) = place([(100, 100)], [(40, 10)], [wall], BOUNDS)
    assert overlap(box, wall) == 0


def test_where_all_is_full_a_place_is_found_all_the_same() -> None:
    boxes = place([(10, 10), (12, 10)], [(30, 20), (30, 20)], [], (0, 0, 31, 21))
    assert len(boxes) == 2


@given(st.lists(st.floats(0, 1), max_size=12))
def test_spread_keeps_order_distance_and_bounds(found: list[float]) -> None:
    moved = spread(found, 0.05, 0.0, 1.0)
    ordered = sorted(moved)
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in moved)
    for (a, x), (b, y) in itertools.combinations(zip(found, moved, strict=True), 2):
        assert a == b or (a < b) == (x < y)


def test_spread_leaves_what_is_apart() -> None:
    assert spread([0.9, 0.1, 0.5], 0.05, 0, 1) == [0.9, 0.1, 0.5]
