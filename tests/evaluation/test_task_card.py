"""A task's card from made-up trainings: each criterion both ways, and what the card says."""

import dataclasses

import pytest

from nsa_lab.evaluation.task_card import Facts, Outcome, belongs, criteria, left_chance_at, markdown, table

FACTS = Facts(
    name="blink",
    summary="is there a flash",
    stands_for="TimeScope",
    question="Was there a flash?",
    chance=0.25,
    answers=300,
    tokens=80,
    dials="frames 40",
    subsets=("window", "compression+selection", "selection"),
)
FIT = {
    "dense": (0.96, 0.98, 0.94),
    "blind": (0.25, 0.25, 0.25),
    "frame_local": (0.30, 0.34, 0.32),
    "window": (0.26, 0.28, 0.27),
    "compression+selection": (0.95, 0.97, 0.96),
    "selection": (0.5, 0.9, 0.1),
}


def outcomes(reading="transport", **changed):
    reached = FIT | {name.replace("_and_", "+"): values for name, values in changed.items()}
    return [
        Outcome(reading, design, seed, accuracy, 300, 1.5, "100" if accuracy > 0.5 else "never", f"{design}{seed}")
        for design, values in reached.items()
        for seed, accuracy in enumerate(values)
    ]


def met(**changed):
    return [criterion.met for criterion in criteria(FACTS, outcomes(**changed))]


def test_a_fit_task_meets_all_four():
    found = criteria(FACTS, outcomes())
    assert belongs(found) and [criterion.met for criterion in found] == [True] * 4
    assert FACTS.noise == pytest.approx(1.96 * (0.25 * 0.75 / 300) ** 0.5)
    said = [f"{criterion.asked}: {criterion.found}" for criterion in found]
    assert said[0] == "dense reaches 95%: 96.0 ± 5.0 %"
    assert said[1].startswith("blind at chance (25.0% inside its interval, or no farther off than 4.9%): 25.0 ± 0.0 %")
    assert said[2] == "knock-out within 10 points of blind: 32.0 ± 5.0 %, +7.0 points"
    assert said[3].endswith("compression+selection 96.0 ± 2.5 %") and "window 27.0 ± 2.5 %" in said[3]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"dense": (0.94, 0.95, 0.95)}, [False, True, True, True]),
        ({"dense": (0.95, 0.95, 0.95)}, [True, True, True, True]),
        ({"dense": ()}, [False, True, True, True]),
        # Five points off with a narrow interval; the same with one that holds chance; within the noise of a validation.
        ({"blind": (0.31, 0.31, 0.31)}, [True, False, True, True]),
        ({"blind": (0.31, 0.25, 0.37)}, [True, True, True, True]),
        ({"blind": (0.29, 0.29, 0.29)}, [True, True, True, True]),
        ({"frame_local": (0.36, 0.36, 0.36)}, [True, True, False, True]),
        ({"frame_local": (0.13, 0.13, 0.13)}, [True, True, False, True]),
        ({"frame_local": ()}, [True, True, False, True]),
        # One subset is as good as the other; intervals that meet; two seeds, of which no interval is known.
        ({"window": (0.95, 0.97, 0.96)}, [True, True, True, False]),
        ({"window": (0.5, 0.9, 0.1)}, [True, True, True, False]),
        ({"window": (0.26, 0.28), "selection": (0.1, 0.9)}, [True, True, True, False]),
    ],
)
def test_each_criterion_can_fail_alone(changed, expected):
    assert met(**changed) == expected
    assert belongs(criteria(FACTS, outcomes(**changed))) == all(expected)


def test_a_run_has_left_chance_when_it_does_not_come_back():
    seen = {50: 0.4, 100: 0.2, 150: 0.31, 200: 0.9}
    assert left_chance_at(seen, 0.3) == "150"
    assert left_chance_at(seen, 0.31) == "200"
    assert left_chance_at(seen, 0.1) == "50"
    assert left_chance_at(seen, 0.9) == left_chance_at({}, 0.3) == "never"


def test_the_card_shows_both_readings_and_the_first_decides():
    unfit = outcomes("dense text rows", frame_local=(0.9, 0.9, 0.9))
    card = markdown(FACTS, [*outcomes(), *unfit], "nsa-lab tasks check blink", "commit abc")
    assert card.startswith(
        "# blink\n\nIs there a flash. It stands for TimeScope. Asked: Was there a flash? Chance 25.0%;"
    )
    assert "**Belongs to the suite**, by the criteria with transport." in card
    assert "| dense | 96.0 ± 5.0 % | 96.0, 98.0, 94.0 | 300 | 1.5 | 100, 100, 100 |" in card
    assert card.index("## With transport") < card.index("## With dense text rows")
    assert card.count("- [x]") == 7 and card.count("- [ ] knock-out within 10 points of blind") == 1
    assert "+65.0 points" in card and card.endswith("`nsa-lab tasks check blink`; commit abc\n")
    turned = markdown(dataclasses.replace(FACTS, stands_for=""), [*unfit, *outcomes()], "x", "y")
    assert "**Does not belong to the suite**, by the criteria with dense text rows." in turned
    assert "stands for" not in turned


def test_the_table_has_a_row_for_each_training():
    head, first, *rest = table("blink", outcomes())
    assert dict(zip(head, first, strict=True)) == {
        "task": "blink",
        "reading": "transport",
        "design": "dense",
        "seed": 0,
        "accuracy": 0.96,
        "steps": 300,
        "minutes": 1.5,
        "left_chance_at": "100",
        "config_hash": "dense0",
    }
    assert len(rest) == 17
