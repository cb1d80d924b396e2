import json
import math

import pytest
import torch

from mergekit_av import AVError
from mergekit_av.data.domain import Domain
from mergekit_av.evaluation.accuracy import summarise
from mergekit_av.evaluation.sweep.calibration import calibrate, for_card, margin
from mergekit_av.evaluation.sweep.sweep import Point
from mergekit_av.vectors.card import vector_card
from mergekit_av.vectors.vector import AlignmentVector

TONE = Domain("tone", {"warm": "", "cold": ""})


def result(split: str, *scores: tuple[float, float]):
    ids = [str(i) for i in range(len(scores))]
    return summarise(TONE, split, ids, torch.tensor(scores))


def point(value: float, validation: list, test: list) -> Point:
    results = {("tone", "validation"): result("validation", *validation)}
    return Point({"tone": value}, results | {("tone", "test"): result("test", *test)})


WARM, COLD, BARELY = (-1.0, -2.0), (-2.0, -1.0), (-1.0, -1.1)


def test_the_margin_is_that_over_the_best_other_level():
    domain = Domain("x", {"a": "", "b": "", "c": ""})
    scores = torch.tensor([[-1.0, -3.0, -2.0], [-4.0, -2.0, -5.0]])
    some = summarise(domain, "test", ["1", "2"], scores)
    assert margin(some, "a") == pytest.approx((1.0 - 2.0) / 2)
    assert margin(some, "b") == pytest.approx((-2.0 + 2.0) / 2)
    assert margin(some, "c") == pytest.approx((-1.0 - 3.0) / 2)


def test_validation_chooses_and_test_reports():
    points = [
        point(-1.0, [COLD, COLD], [WARM, COLD]),
        point(0.0, [WARM, COLD], [WARM, WARM]),
        point(1.0, [WARM, WARM], [WARM, COLD]),
    ]
    found = calibrate(points, "tone", "tone", (-1.0, 1.0))
    warm, cold = found.best["warm"], found.best["cold"]
    assert (warm.value, warm.validation, warm.test.accuracy["warm"].value) == (1.0, 1.0, 0.5)
    assert (cold.value, cold.validation, cold.test.accuracy["cold"].value) == (-1.0, 1.0, 0.5)
    assert not warm.dominant and not cold.dominant  # half of two levels is not above half
    assert found.best_usable == found.best


def test_ties_go_to_the_smaller_change_and_then_to_the_larger_margin():
    points = [
        point(-2.0, [WARM], [WARM]),
        point(0.0, [BARELY], [WARM]),
        point(0.5, [WARM], [WARM]),
        point(1.0, [BARELY], [WARM]),
    ]
    assert calibrate(points, "tone", "tone", None).best["warm"].value == 0.0
    assert calibrate(points[::-1], "tone", "tone", None).best["warm"].value == 0.0
    aside = [p for p in points if p.lambdas["tone"]] + [point(-0.5, [BARELY], [WARM])]
    assert calibrate(aside, "tone", "tone", None).best["warm"].value == 0.5
    assert calibrate(aside[::-1], "tone", "tone", None).best["warm"].value == 0.5
    # Where no record prefers it, the least bad one.
    assert calibrate(points, "tone", "tone", None).best["cold"].value == 0.0


def test_inside_the_usable_range_the_choice_is_made_anew():
    points = [
        point(0.0, [COLD, COLD], [COLD, COLD]),
        point(1.0, [WARM, COLD], [WARM, COLD]),
        point(2.0, [WARM, WARM], [WARM, WARM]),
    ]
    found = calibrate(points, "tone", "tone", (0.0, 1.0))
    assert found.best["warm"].value == 2.0 and found.best_usable["warm"].value == 1.0
    assert calibrate(points, "tone", "tone", None).best_usable == {}


def test_the_card_has_no_lambda_where_the_level_is_not_dominant():
    points = [
        point(0.0, [COLD, COLD], [COLD, COLD]),
        point(1.0, [WARM, COLD], [WARM, COLD]),
        point(2.0, [WARM, WARM], [WARM, WARM]),
    ]
    usable = (0.0, 1.0)
    entries = for_card(calibrate(points, "tone", "tone", usable), usable, {"dtype": "x"})
    assert entries["dtype"] == "x" and entries["usable_range"] == [0.0, 1.0]
    warm, cold = entries["levels"]["warm"], entries["levels"]["cold"]
    assert (warm["lambda"], warm["nearest"], warm["validation"]) == (None, 1.0, 0.5)
    assert (cold["lambda"], cold["nearest"], cold["validation"]) == (0.0, 0.0, 1.0)
    assert set(warm["test"]) == {"value", "low", "high"}
    # Without a usable range, the best of all.
    entries = for_card(calibrate(points, "tone", "tone", None), None, {})
    assert entries["usable_range"] is None and entries["levels"]["warm"]["lambda"] == 2.0


def test_the_card_and_the_vector_know_what_was_measured(vectors, tmp_path):
    import shutil

    folder = shutil.copytree(vectors["medical"], tmp_path / "tone")
    points = [point(0.0, [COLD], [COLD]), point(1.0, [BARELY], [COLD])]
    calibration = for_card(
        calibrate(points, "tone", "tone", (0.0, 1.0)),
        (0.0, 1.0),
        {"domain": "tone", "records": {"test": 1, "validation": 1}},
    )
    AlignmentVector.open(folder).write_calibration(calibration)
    again = AlignmentVector.open(folder).metadata
    assert again.calibration == json.loads(json.dumps(calibration))
    assert again.calibrated("cold") == 0.0
    with pytest.raises(AVError, match=r"no λ in the usable range .* makes 'warm' dominant"):
        again.calibrated("warm")
    card = (folder / "README.md").read_text("utf-8")
    assert card == vector_card(again)
    assert "| warm (not dominant) | 1 | 1.00 | 0.00" in card and "| cold | 0 | 1.00 | 1.00" in card
    assert "from 0 to 1" in card


def test_one_record_makes_intervals_that_json_can_hold():
    points = [point(0.0, [WARM], [WARM])]
    entry = for_card(calibrate(points, "tone", "tone", None), None, {})["levels"]["warm"]
    assert all(math.isfinite(end) for end in entry["test"].values())
