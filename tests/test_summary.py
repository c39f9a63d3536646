"""What the terminal says when a plan is made."""

from lspm_ray.commands.summary import shortcomings
from lspm_ray.evaluation.forgetting import ClassChange, Forgetting
from lspm_ray.selection.break_even import BreakEven


def pays(first: str, size: int, cost: float) -> BreakEven:
    return BreakEven(first=first, batch_size=size, cost=cost, most=None, most_for_saving=None, needed=None)


def change(label: str, lost: int, verdict: str) -> ClassChange:
    return ClassChange.parse({"label": label, "rows": 200, "right": 200, "lost": lost, "gained": 0, "verdict": verdict})


def test_what_is_slower_than_full_is_named_with_its_batch_sizes() -> None:
    found = [
        pays("int8", 1, 0.5),
        pays("int8", 8, 1.2),
        pays("int8", 32, 1.0),
        pays("bag", 1, 0.1),
        pays("int4", 1, 2.0),
    ]
    assert shortcomings(found, Forgetting(bound=0.05, alone={}, plan=[])) == [
        "slower than full: int8 at batch size 8, 32; int4 at batch size 1"
    ]


def test_forgotten_classes_are_named_worst_first_and_no_others() -> None:
    bag = [change("a", 30, "forgotten"), change("b", 199, "kept"), change("c", 50, "forgotten")]
    told = Forgetting(bound=0.05, alone={"int8": [change("a", 1, "kept")], "bag": bag}, plan=bag)
    assert shortcomings([], told) == ["classes forgotten when alone: bag (c by 25.0 points, a by 15.0 points)"]


def test_of_many_forgotten_classes_the_worst_are_named() -> None:
    many = [change(f"c{lost}", lost, "forgotten") for lost in (50, 60, 70, 80, 90)]
    told = Forgetting(bound=0.05, alone={"bag": many, "lstm": many[:3]}, plan=[])
    assert shortcomings([], told) == [
        "classes forgotten when alone: bag (c90 by 45.0 points, c80 by 40.0 points, c70 by 35.0 points and 2 more); "
        "lstm (c70 by 35.0 points, c60 by 30.0 points, c50 by 25.0 points)"
    ]


def test_labels_cannot_steer_the_terminal() -> None:
    told = Forgetting(bound=0.05, alone={"bag": [change("\x1b[2Jevil", 50, "forgotten")]}, plan=[])
    assert "\x1b" not in shortcomings([], told)[0]


def test_where_nothing_speaks_against_variants_nothing_is_said() -> None:
    kept = Forgetting(bound=0.05, alone={"int8": [change("a", 1, "kept"), change("b", 9, "cannot be told")]}, plan=[])
    assert shortcomings([pays("int8", 1, 0.9)], kept) == []
    assert shortcomings([], Forgetting(bound=None, alone={}, plan=[])) == []
