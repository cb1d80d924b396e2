"""Which settings a strategy asks for, and whether it finds what is there to be found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import LEVELS, World, explore

from mergekit_av import AVError
from mergekit_av.evaluation.search.landscape import Landscape
from mergekit_av.evaluation.search.problem import Question, axis, combinations
from mergekit_av.evaluation.search.strategies import MOST, STRATEGIES, Grid, Hierarchical, Surface
from mergekit_av.evaluation.search.surfaces import Surfaces


def goals_of(world: World) -> list[dict[str, str]]:
    return combinations(world.question.levels)


def met(world: World, some) -> set[tuple]:
    landscape = Landscape.seen(world.question, some)
    return {
        tuple(goal.items()) for goal in goals_of(world) if landscape.met(world.question, goal).any()
    }


def whole(world: World):
    """Every point of the lattice, as it is."""
    points = np.array(world.question.lattice())
    return Landscape.of(world.question, points, world.scores(points), np.zeros(len(points)))


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
)
def test_surfaces_find_every_combination_of_the_grid_with_a_fiftieth_of_its_settings(seed):
    world = World(seed=seed)
    goals, everything = goals_of(world), whole(world)
    there = {tuple(g.items()) for g in goals if everything.met(world.question, g).any()}
    seen = explore(Surface(world.question, goals), world, world.question.size // 50)
    assert len(there) > 10 and met(world, seen) == there
    found = Landscape.seen(world.question, seen)
    for goal in map(dict, there):
        best = everything.value(world.question, goal).max()
        assert found.value(world.question, goal).max() > best - 0.1


@pytest.mark.parametrize("seed", range(3))
def test_one_goal_is_found_with_a_few_dozen_settings(seed):
    world = World(seed=seed)
    goal = {"d0": "avoidance", "d1": "generic", "d2": "expert"}
    everything = whole(world)
    assert everything.met(world.question, goal).any()
    seen = explore(Surface(world.question, [goal]), world, 60)
    found = Landscape.seen(world.question, seen)
    assert found.met(world.question, goal).any()
    best = everything.value(world.question, goal).max()
    assert found.value(world.question, goal).max() > best - 0.1


def test_the_grid_asks_for_every_point_once_the_smallest_change_first():
    world = World(2, step="0.5")
    points = Grid(world.question, []).next([])
    assert sorted(points) == sorted(world.question.lattice()) and points[0] == (0.0, 0.0)
    sizes = [sum(map(abs, point)) for point in points]
    assert sizes == sorted(sizes)
    assert Grid(world.question, []).next(world.settings(points[:70])) == points[70:]
    assert Grid(world.question, []).minimum == 81


def test_a_grid_too_large_to_list_is_refused():
    question = Question({str(i): axis(-2, 2, "0.1") for i in range(5)}, {"d": LEVELS})
    with pytest.raises(AVError, match="the grid has 115,856,201 settings: take a larger step"):
        Grid(question, [])


def test_the_hierarchical_strategy_ends_on_the_finest_lattice_around_its_best():
    world = World(2, step="0.1")
    goals = goals_of(world)
    strategy = Hierarchical(world.question, goals)
    seen = explore(strategy, world)
    points = {setting.point for setting in seen}
    assert len(points) == len(seen) and strategy.minimum == 16 < len(seen) < world.question.size / 3
    landscape = Landscape.seen(world.question, seen)
    step = 0.1
    for goal in goals:
        best = landscape.points[landscape.value(world.question, goal).argmax()]
        near = [best + np.array([x, y]) * step for x in (-1, 0, 1) for y in (-1, 0, 1)]
        missing = [
            point
            for point in near
            if np.abs(point).max() <= 2.0001 and tuple(point.round(1).tolist()) not in points
        ]
        # The point that is the best in the end may have been found beside another one.
        assert len(missing) <= 5


def test_both_ends_of_an_axis_are_on_the_coarse_grid():
    question = Question({"a": axis(-2, 2, "0.2")}, {"d0": LEVELS})
    first = Hierarchical(question, []).next([])
    assert first[0] == (-2.0,) and first[-1] == (2.0,)


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_is_asked_for_twice_and_all_of_it_lies_on_the_lattice(name):
    world = World(2, step="0.25")
    seen = explore(STRATEGIES[name](world.question, goals_of(world)), world)
    points = [setting.point for setting in seen]
    assert len(points) == len(set(points)) and set(points) <= set(world.question.lattice())
    assert len(points) >= STRATEGIES[name](world.question, []).minimum


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_has_no_memory_of_its_own(name):
    world = World(2, step="0.25")
    goals = goals_of(world)
    seen = explore(STRATEGIES[name](world.question, goals), world, 60)
    for length in range(0, len(seen), 7):
        first, second = (STRATEGIES[name](world.question, goals) for _ in range(2))
        assert first.next(seen[:length]) == second.next(seen[:length])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(0, 3), st.sampled_from(["0.1", "0.5", "1"]))
def test_the_design_holds_what_is_nearest_to_0_and_fills_the_box(vectors, low, step):
    question = Question({str(i): axis(low - 2, low, step) for i in range(vectors)}, {"d": LEVELS})
    strategy = Surface(question, [])
    points = strategy.next([])
    assert len(points) == len(set(points)) == strategy.minimum
    assert (tuple([max(0.0, float(low - 2))] * vectors)) in points
    axes = question.axes.values()
    assert all(x in values for point in points for x, values in zip(point, axes, strict=True))


def test_a_small_lattice_is_measured_whole():
    world = World(1, step="1")
    strategy = Surface(world.question, goals_of(world))
    assert strategy.minimum == 5
    assert len(explore(strategy, world)) == 5


def test_more_vectors_than_a_lattice_can_be_listed_for():
    world = World(4, step="0.1")
    levels = ("expert", "avoidance", "generic", "expert")
    goal = dict(zip(world.question.axes, levels, strict=True))
    assert world.question.size > MOST
    seen = explore(Surface(world.question, [goal]), world, 90)
    found = Landscape.seen(world.question, seen)
    assert found.met(world.question, goal).any()


# Surfaces


def test_what_was_measured_comes_back():
    world = World()
    rng = np.random.default_rng(0)
    seen = world.settings(rng.uniform(-2, 2, (40, 3)).tolist())
    points = np.array([setting.point for setting in seen])
    predicted, measured = (
        Surfaces(world.question, seen).landscape(points),
        Landscape.seen(world.question, seen),
    )
    for key, values in measured.smooth.items():
        assert predicted.smooth[key] == pytest.approx(values, abs=1e-6)
    assert predicted.damage == pytest.approx(measured.damage, abs=1e-6)


def test_more_settings_make_better_surfaces_and_the_error_says_so():
    world = World()
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (160, 3)).tolist()
    others = rng.uniform(-2, 2, (200, 3))
    truth = world.scores(others)
    errors, said = [], []
    for count in (20, 40, 80, 160):
        surfaces = Surfaces(world.question, world.settings(points[:count]))
        guess = surfaces.scores(others)
        errors.append(np.sqrt(np.mean([np.square(guess[d] - truth[d]).mean() for d in truth])))
        said.append(surfaces.error())
    assert errors == sorted(errors, reverse=True) and said == sorted(said, reverse=True)
    assert all(0.3 < a / b < 3 for a, b in zip(errors, said, strict=True))


def test_few_or_lined_up_points_make_a_surface_too():
    world = World(2)
    for points in ([(0, 0)], [(0, 0), (1, 1)], [(0, 0), (1, 1), (2, 2)], [(0, 1), (0, 2), (0, -1)]):
        seen = world.settings([tuple(map(float, point)) for point in points])
        surfaces = Surfaces(world.question, seen)
        measured = Landscape.seen(world.question, seen)
        predicted = surfaces.landscape(measured.points)
        for key, values in measured.smooth.items():
            assert predicted.smooth[key] == pytest.approx(values, abs=1e-6)
        assert np.isfinite(surfaces.error())


def test_a_broken_model_does_not_tilt_the_surface_where_the_language_holds():
    world = World(1, step="0.5")
    seen = [
        type(one)(one.point, one.scores, 0.2 if abs(one.point[0]) < 2 else 1e6)
        for one in world.settings(world.question.lattice())
    ]
    predicted = Surfaces(world.question, seen).landscape(np.linspace(-1, 1, 21)[:, None])
    assert np.abs(predicted.damage).max() < 1
