"""eval_detection.py: floors and ceiling are what they claim to be, and the swap columns tell looking from habit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripted import (
    COLOURS,
    END,
    Scripted,
    backwards,
    blobs,
    end_of_run,
    evaluated,
    finds,
    looks,
    painted,
    table,
    written,
)

from activeo3 import (
    data_scenes,
    eval_baselines,
    eval_core,
    eval_detection,
    eval_output,
    eval_page,
    eval_runner,
    eval_setup,
    geometry,
)
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_core import Row
from activeo3.eval_detection import DetectionBenchmark
from activeo3.eval_runner import OneProcess, Runner
from activeo3.geometry import as_boxes
from activeo3.intervals import Metric
from activeo3.metrics import ap_ar_50, region_recall
from activeo3.prompts import sensing_answer, sensing_prompt
from activeo3.task_models import Oracle, act
from activeo3.types import Example, Region, Sampling

CONFIG = TrainConfig(crop_side=128, sensing_side=96)
SIZE = (320, 240)


def plain(size: tuple[int, int], boxes: list | np.ndarray = (), name: str = "a", **more) -> Example:
    """An example whose picture nobody looks at."""
    return Example(name, Image.new("RGB", size), "dot", as_boxes(boxes), **more)


def scattered(count: int, seed: int = 0) -> list[Example]:
    """Pictures with a red and a green thing anywhere; every other one asks for red, the rest for green."""
    rng = np.random.default_rng(seed)
    examples = []
    for k in range(count):
        boxes: dict[str, tuple] = {}
        while not boxes or abs(boxes["red"][0] - boxes["green"][0]) < 60:  # apart, so that none hides another
            corners = rng.integers(0, (SIZE[0] - 40, SIZE[1] - 30), (2, 2)).tolist()
            boxes = {colour: (x, y, x + 40, y + 30) for colour, (x, y) in zip(COLOURS, corners)}
        asked = ("red", "green")[k % 2]
        image = painted(SIZE, list(boxes.items()))
        examples.append(Example(f"picture-{k}", image, asked, as_boxes([boxes[asked]]), image_id=k + 1))
    return examples


def blind(model: Scripted, view: Image.Image, question: str) -> str:
    """A policy that answers the same whatever it sees and is asked."""
    return sensing_answer([[250, 250, 750, 750]], "the middle") + END


def deaf(model: Scripted, view: Image.Image, question: str) -> str:
    """A policy that looks but does not listen: regions around whatever is there."""
    things = as_boxes([box for colour in COLOURS for box in blobs(view, colour)])
    return sensing_answer(written(model, view, things + [-3, -3, 3, 3]), "all") + END


def both_roles(senses):
    """Asked where to look it answers as ``senses`` does, asked to find as a perfect task model."""
    return lambda model, view, question: (senses if question.startswith("Where") else finds)(model, view, question)


def boxes_table(methods, examples, policy, start, task_models=None, training=(), config=CONFIG, **more) -> list[Row]:
    """The rows of a few methods; ``training`` is what the fixed regions are fitted on."""
    kind = type("Fitted", (DetectionBenchmark,), {"training": training})
    flags = {"methods": tuple(methods), "resamples": 10} | more
    runner = flags.pop("runner", None)
    return table(
        kind, examples, {"start": start, "trained": policy}, config, task_models or {"mllm": start}, runner, **flags
    )


def fitted(task_model, training: list[Example], config=CONFIG) -> np.ndarray:
    run = lambda work, items, key, **more: Runner().map(  # noqa: E731
        lambda block: [one | {"seconds": 0.0} for one in work(block)], items, key, **more
    )
    return eval_baselines.fit_fixed(task_model, training, config, run, config.regions)


@pytest.fixture
def policy(tokenizer):
    """``policy(senses)``: a model that can do both roles."""
    return lambda senses: Scripted("qwen3_vl", tokenizer, both_roles(senses))


# ---------------------------------------------------------------------- floors

sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


@settings(deadline=None)
@given(sizes, st.integers(1, 10))
def test_grid_tiles_partition_the_picture(size: tuple[int, int], count: int) -> None:
    tiles = as_boxes(eval_baselines.grid_regions(plain(size), count))
    whole = size[0] * size[1]
    assert len(tiles) == count
    assert geometry.area(tiles).sum() == pytest.approx(whole)
    assert np.triu(geometry.intersection(tiles, tiles), k=1).max() <= 1e-9 * whole
    assert [*tiles[:, :2].min(axis=0), *tiles[:, 2:].max(axis=0)] == pytest.approx([0, 0, *size])


@pytest.mark.parametrize(
    "size, count, tile",
    [
        ((100, 100), 4, (50, 50)),
        ((300, 200), 6, (100, 100)),
        ((1344, 896), 3, (448, 896)),
        ((896, 1344), 3, (896, 448)),
        ((900, 100), 9, (100, 100)),
        ((100, 100), 1, (100, 100)),
    ],  # fmt: skip
)
def test_grid_tiles_are_as_square_as_they_can_be(size: tuple[int, int], count: int, tile: tuple[int, int]) -> None:
    for x1, y1, x2, y2 in eval_baselines.grid_regions(plain(size), count):
        assert (x2 - x1, y2 - y1) == pytest.approx(tile)


@settings(deadline=None)
@given(sizes, st.integers(1, 10), st.text(max_size=30))
def test_random_regions_are_inside_of_sensible_size_and_repeatable(
    size: tuple[int, int], count: int, name: str
) -> None:
    regions = eval_baselines.random_regions(plain(size, name=name), count)
    assert regions == eval_baselines.random_regions(plain(size, name=name), count)
    units = eval_baselines.to_unit(regions, size)
    assert len(regions) == count and (units >= 0).all() and (units <= 1 + 1e-12).all()
    sides = units[:, 2:] - units[:, :2]
    assert (sides >= 0.2 - 1e-9).all() and (sides <= 0.5 + 1e-9).all()


def test_random_regions_differ_from_example_to_example() -> None:
    drawn = {eval_baselines.random_regions(plain((100, 100), name=f"e{k}"), 3) for k in range(50)}
    assert len(drawn) == 50
    centres = (
        np.array([eval_baselines.to_unit(regions, (100, 100)) for regions in drawn]).reshape(-1, 2, 2).mean(axis=1)
    )
    assert np.abs(centres.mean(axis=0) - 0.5).max() < 0.06  # anywhere, not in one corner


def test_the_whole_image_is_one_region() -> None:
    assert eval_baselines.whole_image(plain((640, 480)), 3) == (Region(0.0, 0.0, 640.0, 480.0),)


# ---------------------------------------------------------------------- the ceiling


def check_oracle(example: Example, most: int) -> np.ndarray:
    """At most ``most`` regions, inside the picture, that hold every true box completely."""
    regions = as_boxes(eval_baselines.oracle_regions(example, most))
    assert 1 <= len(regions) <= most
    assert (geometry.area(regions) > 0).all()
    assert np.array_equal(regions, geometry.clipped(regions, example.size_px))
    assert region_recall(regions, example.boxes_px, share=1.0) == 1.0
    return regions


def test_oracle_regions_hold_all_targets_of_a_scene_and_are_small() -> None:
    shares = []
    for index in range(40):
        scene = data_scenes.scene("test", index)
        example = plain(scene.size, [thing.box_px for thing in scene.targets])
        for most in (1, 2, 3):
            regions = check_oracle(example, most)
        shares += (geometry.area(regions) / (scene.size[0] * scene.size[1])).tolist()
    assert 0.01 <= min(shares) and max(shares) <= 0.5  # the reward's own idea of a sensible area
    assert np.mean(shares) < 0.15  # it zooms


places = st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 100), st.integers(1, 100))


@settings(deadline=None)
@given(
    st.lists(places, min_size=1, max_size=10), st.integers(1, 4), st.sampled_from([(100, 100), (500, 60), (64, 2000)])
)
def test_oracle_regions_hold_all_boxes_there_can_be(boxes: list, most: int, size: tuple[int, int]) -> None:
    corners = as_boxes([(x, y, min(100, x + w), min(100, y + h)) for x, y, w, h in boxes])
    check_oracle(plain(size, corners / 100 * [*size, *size]), most)


def test_oracle_regions_stay_apart_when_they_may() -> None:
    example = plain((900, 900), [(10, 10, 40, 40), (60, 20, 90, 50), (850, 850, 890, 890)])
    assert len(eval_baselines.oracle_regions(example, 3)) == 2  # neighbours share one, the far one has its own
    assert len(eval_baselines.oracle_regions(example, 1)) == 1


@pytest.mark.parametrize("corner", [(0, 0), (580, 0), (0, 380), (580, 380)])
def test_an_oracle_region_at_the_border_is_moved_and_not_cut(corner: tuple[int, int]) -> None:
    x, y = corner
    ((x1, y1, x2, y2),) = eval_baselines.oracle_regions(plain((600, 400), [(x, y, x + 20, y + 20)]), 3)
    assert (x2 - x1, y2 - y1) == (100, 100)  # a quarter of the shorter side


def test_the_oracle_looks_at_nothing_where_nothing_is_and_at_no_crowd() -> None:
    assert eval_baselines.oracle_regions(plain((100, 100)), 3) == ()
    boxes, crowd = [(0, 0, 20, 20), (400, 400, 490, 490)], np.array([False, True])
    with_crowd = eval_baselines.oracle_regions(plain((500, 500), boxes, crowd=crowd), 3)
    assert with_crowd == eval_baselines.oracle_regions(plain((500, 500), boxes[:1]), 3)


# ---------------------------------------------------------------------- the best regions that ignore the picture


def short_sighted(model: Scripted, view: Image.Image, question: str) -> str:
    """A task model that finds a thing only when it is at least 15 pixels wide and high in the view."""
    large = [box for box in blobs(view, "red") if min(box[2] - box[0], box[3] - box[1]) >= 15]
    return finds(model, view if large else painted(view.size, []), question)


def test_the_fixed_regions_are_the_best_of_the_lattice(tokenizer) -> None:
    """Things are a tenth of the side: only the smallest lattice regions show them large enough, and only
    one of those holds each."""
    places = [(0.06, 0.84), (0.83, 0.07), (0.37, 0.36)]  # three spots that only one small region holds
    wanted = [(0.0, 0.66, 0.34, 1.0), (0.66, 0.0, 1.0, 0.34), (0.22, 0.22, 0.56, 0.56)]
    training = []
    for k, side in enumerate((300, 400)):
        boxes = [
            (int(x * side), int(y * side), int(x * side) + side // 10, int(y * side) + side // 10) for x, y in places
        ]
        image = painted((side, side), [("red", box) for box in boxes])
        training.append(Example(f"e{k}", image, "red", as_boxes(boxes)))
    task_model = Scripted("qwen3_vl", tokenizer, short_sighted)
    config = TrainConfig(crop_side=64, regions=2)
    two = fitted(task_model, training, config)
    chosen = {tuple(box.round(2)) for box in two}
    assert len(chosen) == len(two) == 2 and chosen < set(wanted)  # the second for what the first does not show
    benchmark = DetectionBenchmark("toys", evaluated(config))
    benchmark.fixed = two
    (rollout,) = benchmark._propose_fixed(None, None)(None, [plain((800, 600))], config)
    assert rollout.regions == eval_baselines.from_unit(two, (800, 600))


@pytest.mark.parametrize("merge, best", [("nms", True), ("concat", False)])
def test_the_fixed_regions_are_fitted_by_the_merging_of_the_table(merge: str, best: bool, tokenizer) -> None:
    """The first thing stands in both regions: concatenated, it is found twice and the second thing ranks third."""
    things = [(20, 20, 60, 60), (240, 20, 280, 60)]
    example = Example("e", painted((300, 300), [("red", thing) for thing in things]), "red", as_boxes(things))
    task_model, config = Scripted("qwen3_vl", tokenizer, finds), TrainConfig(crop_side=96, merge=merge)
    regions = [Region(0, 0, 100, 100), Region(0, 0, 300, 300)]
    one_by_one = [act(task_model, [example], [[region]], config) for region in regions]
    together = act(task_model, [example], [regions], config)
    reward = eval_baselines._joint_reward([example], one_by_one, merge)
    assert reward == sum(ap_ar_50(example, together[0])) and (reward == 2.0) == best


def test_fitting_the_fixed_regions_is_not_part_of_their_seconds(policy, monkeypatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(eval_core.time, "perf_counter", lambda: float(next(clock)))
    (row,) = boxes_table(["fixed"], scattered(2), policy(looks), policy(looks), training=scattered(1))
    assert row.metrics["seconds"] == 1.0  # a tick to propose for two images, and one to act


def test_the_lattice_lies_inside_the_picture() -> None:
    boxes = eval_baselines.fixed_candidates()
    assert (boxes >= 0).all() and (boxes <= 1 + 1e-9).all() and (geometry.area(boxes) > 0.09).all()
    assert len({tuple(box.round(6)) for box in boxes}) == len(boxes)


def test_fixed_regions_need_training_pictures(tokenizer) -> None:
    with pytest.raises(ValueError, match="training images"):
        fitted(Scripted("qwen3_vl", tokenizer, finds), [])


# ---------------------------------------------------------------------- swapping picture and query


def swapped(senses, examples: list[Example], policy, method: str = "active") -> dict[str, Metric | None]:
    policy = policy(senses) if policy else None
    (row,) = boxes_table([method], examples, policy, policy, {"oracle": Oracle()}, resamples=20)
    return row.metrics


def test_a_policy_that_looks_and_listens_loses_both_ways(policy) -> None:
    result = swapped(looks, scattered(40), policy)
    assert result["region_recall"].value == 1.0
    assert result["swap_picture"].value > 0.6
    assert result["swap_query"].value > 0.6


def test_a_policy_that_looks_but_does_not_listen_loses_by_the_picture_alone(policy) -> None:
    result = swapped(deaf, scattered(40), policy)
    assert result["region_recall"].value == 1.0
    assert result["swap_picture"].value > 0.3
    assert result["swap_query"].value == 0.0


def test_a_blind_policy_loses_nothing(policy) -> None:
    result = swapped(blind, scattered(40), policy)
    assert 0 < result["region_recall"].value < 1  # it is right now and then, and no less so with other pictures
    assert result["swap_picture"].value == 0.0
    assert result["swap_query"].value == 0.0


def test_the_start_policy_is_swapped_with_its_own_answers(policy) -> None:
    (row,) = boxes_table(["cot"], scattered(10), policy(looks), policy(deaf), {"oracle": Oracle()})
    assert row.metrics["region_recall"].value == 1.0 and row.metrics["swap_query"].value == 0.0


@pytest.mark.parametrize("method, low, high", [("random", -0.1, 0.1), ("grid", 0, 0), ("oracle-regions", 0.6, 1)])
def test_methods_without_a_model_have_a_swap_too(method: str, low: float, high: float) -> None:
    result = swapped(None, scattered(120), None, method)
    assert low <= result["swap_picture"].value <= high
    assert result["swap_query"] is None


def test_a_swapped_picture_is_another_image() -> None:
    """Data sets ask several questions about one picture in a row; a neighbour's regions may be its own."""
    examples = [
        plain(SIZE, [(60 * k, 0, 60 * k + 20, 20)], f"e{k}-{i}", image_id=k) for k in range(4) for i in range(3)
    ]
    regions = [eval_baselines.oracle_regions(example, 3) for example in examples]
    result = eval_detection.sensing_metrics(examples, regions, [], resamples=20)
    lenders = [eval_detection.other_image(examples, i) for i in range(len(examples))]
    assert [examples[k].image_id for k in lenders] == [3, 3, 3, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert result["swap_picture"].value == 1.0


def test_a_swap_that_means_nothing_is_left_out(policy) -> None:
    examples = scattered(4)
    one_query = [example for example in examples if example.query == "red"]
    one_picture = examples[:1]
    assert swapped(looks, one_query, policy)["swap_query"] is None
    assert swapped(looks, one_query, policy)["swap_picture"] is not None
    assert swapped(looks, one_picture, policy)["swap_picture"] is None
    result = swapped(looks, examples, policy, "direct")
    assert result["region_recall"].value == 1.0 and result["swap_picture"] is result["swap_query"] is None


def test_the_other_query_is_the_next_different_one() -> None:
    queries = ["a", "a", "b", "c", "a"]
    examples = [Example(f"e{k}", Image.new("RGB", (8, 8)), query, as_boxes([])) for k, query in enumerate(queries)]
    assert [eval_detection.other_query(examples, k) for k in range(5)] == ["b", "b", "c", "a", "b"]
    assert eval_detection.other_query(examples[:2], 0) == "a"  # there is no other


def test_recall_is_the_coverage_reward_without_crowds() -> None:
    boxes, crowd = [(0, 0, 10, 10), (50, 50, 60, 60)], np.array([False, True])
    examples = [plain(SIZE, boxes), plain(SIZE, boxes, crowd=crowd), plain(SIZE)]
    regions = [(Region(0.0, 0.0, 20.0, 20.0),)] * 3
    assert eval_detection.recalls(examples, regions).tolist() == pytest.approx([0.5, 1.0, np.nan], nan_ok=True)


def test_unit_boxes_and_back() -> None:
    regions = (Region(16.0, 12.0, 160.0, 240.0), Region(0.0, 0.0, 320.0, 240.0))
    assert eval_baselines.to_unit(regions, SIZE).tolist() == [[0.05, 0.05, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]]
    assert eval_baselines.from_unit(eval_baselines.to_unit(regions, SIZE), SIZE) == regions
    assert eval_baselines.from_unit(eval_baselines.to_unit((), SIZE), SIZE) == ()


# ---------------------------------------------------------------------- whole tables


def test_a_policy_proposes_a_block_at_a_time_and_in_order(policy) -> None:
    policy, examples = (
        policy(looks),
        scattered(eval_runner.BATCH + 3)[:-1] + [replace(scattered(1)[0], id="last", query="red")],
    )
    (row,) = boxes_table(["active"], examples, policy, policy, {"oracle": Oracle()}, budgets=(2,))[:1]
    greedy = Sampling(0.0, CONFIG.max_new_tokens)
    assert policy.batches[:2] == [(eval_runner.BATCH, 1, greedy), (3, 1, greedy)]
    assert [record["id"] for record in row.records] == [example.id for example in examples]


def test_a_table_is_the_same_however_its_blocks_are_shared(policy, monkeypatch) -> None:
    """As ranks do it: some blocks are worked on elsewhere, in another order."""
    monkeypatch.setattr(eval_runner, "BATCH", 3)
    examples, policy, start = scattered(8), policy(looks), policy(deaf)
    tables = []
    for runner in (None, backwards()):
        rows = boxes_table(("cot", "active", "oracle-regions"), examples, policy, start, runner=runner)
        for row in rows:
            row.metrics.pop("seconds"), [record.pop("seconds") for record in row.records]
        tables.append(repr(rows))
    assert tables[0] == tables[1]  # NaN is NaN


def test_a_table_of_every_method(policy, capsys) -> None:
    examples, methods = scattered(5), DetectionBenchmark.default_methods
    rows = boxes_table(methods, examples, policy(looks), policy(blind), training=examples[:1])
    said = capsys.readouterr().out.splitlines()
    assert [row.setting.method for row in rows] == list(methods)
    assert len(said) == len(methods) and all(any(line.startswith(f"toys {name}") for line in said) for name in methods)
    by_name = {row.setting.method: row.metrics for row in rows}
    for row in rows:
        assert (row.benchmark, row.n) == ("toys", 5) and set(row.metrics) > set(eval_detection.COLUMNS)
    for name in ("active", "oracle-regions"):
        assert by_name[name]["AP50"].value == pytest.approx(1.0) and by_name[name]["region_recall"].value == 1.0
    assert by_name["cot"]["AP50"].value < 1 and by_name["cot"]["swap_query"].value == 0.0
    assert by_name["active"]["swap_query"].value > 0.5
    assert [by_name[name]["regions"] for name in ("direct", "random", "grid", "cot")] == [1, 3, 3, 1]
    assert all(numbers["seconds"] > 0 for numbers in by_name.values())
    records = {row.setting.method: row.records for row in rows}
    assert "<answer>" in records["active"][0]["text"] and {one["text"] for one in records["grid"]} == {""}


def test_repeat_asks_for_one_region_and_samples_it_often(policy) -> None:
    config = replace(CONFIG, wording="paper", regions=4)
    senses = lambda model, view, question: sensing_answer([[0, 0, 500, 500], [500, 500, 999, 999]], "two") + END  # noqa: E731
    policy, examples = Scripted("qwen3_vl", policy(looks).tokenizer, senses), scattered(eval_runner.BATCH + 1)
    (row,) = boxes_table(["repeat"], examples, policy, policy, {"oracle": Oracle()}, config=config)
    sampled = Sampling(1.0, config.max_new_tokens)
    assert policy.batches == [(eval_runner.BATCH, 4, sampled), (1, 4, sampled)]
    assert all(question.startswith("Select one region of this image") for _, question in policy.shown)
    for record in row.records:  # the first of each answer; the second was not asked for
        assert record["regions"] == [[0.0, 0.0, SIZE[0] / 2, SIZE[1] / 2]] * 4
        assert record["text"].count("<answer>") == len(record["action"]["boxes_text"]) == 4
        assert record["action"]["error"] == "too_many"


def test_the_budget_is_in_the_prompt() -> None:
    for count in range(2, 11):
        assert f"up to {count} regions" in sensing_prompt("dot", "paper", count)


def test_direct_is_read_in_two_ways(policy) -> None:
    """Squeezed to a square, and in its own shape and size, whatever the shape of crops is."""
    examples = scattered(2)
    for shape in ("square", "aspect"):
        start = policy(looks)
        config = replace(CONFIG, crop_shape=shape)
        boxes_table(("direct", "direct-native"), examples, start, start, config=config)
        assert [view.size for view, _ in start.shown] == [(128, 128)] * 2 + [start.view_size(SIZE)] * 2
        assert start.view_size(SIZE) == (320, 256)  # the image's 320 x 240 in whole visual tokens
        start.shown.clear()
        boxes_table(("oracle-regions",), examples, start, start, config=config)
        assert {view.width == view.height for view, _ in start.shown} == {True}  # these regions are square


def test_methods_times_task_models(policy) -> None:
    examples, policy, start = scattered(6), policy(looks), policy(deaf)
    nothing = Scripted("qwen3_vl", start.tokenizer, lambda *_: "[]" + END)
    task_models = {"mllm": start, "oracle": Oracle(), "second": nothing}
    methods = ("direct", "direct-native", "grid", "active")
    rows = boxes_table(methods, examples, policy, start, task_models, black=True)
    wanted = [(method, name) for method in methods for name in task_models]
    wanted.remove(("direct-native", "oracle"))  # it sees no images, so it would be the same row again
    seeing = [row for row in rows if not row.setting.blind]
    assert [(row.setting.method, row.setting.task_model) for row in seeing] == wanted and len(rows) == 2 * len(wanted)
    labels = [eval_output.label(row, rows) for row in rows]
    assert labels[:2] == ["direct-mllm", "direct-mllm-blind"] and len(set(labels)) == len(rows)
    assert len(policy.batches) == 2  # regions are proposed once for all task models, and once for the swapped queries
    by_name = {(row.setting.method, row.setting.task_model): row for row in seeing}
    for method in ("direct", "grid", "active"):
        regions = [[one["regions"] for one in by_name[method, name].records] for name in task_models]
        assert regions[0] == regions[1] == regions[2]
        lost = by_name[method, "second"].metrics
        assert lost["TP"] == 0 and lost["FN"] == lost["missed"] == 6
    assert by_name["active", "oracle"].metrics["AP"].value == pytest.approx(1.0)
    assert by_name["active", "mllm"].metrics["AP50"].value == pytest.approx(1.0)


def test_on_black_crops_only_the_one_that_does_not_look_scores(policy) -> None:
    examples, start = scattered(4), policy(looks)
    task_models = {"mllm": start, "oracle": Oracle()}
    rows = boxes_table(("oracle-regions",), examples, start, start, task_models, black=True)
    looking, blind, _, knowing = (row.metrics["AP50"].value for row in rows)
    assert [row.setting.blind for row in rows] == [False, True] * 2
    assert (looking, blind, knowing) == (pytest.approx(1.0), 0.0, pytest.approx(1.0))
    assert {np.asarray(view).max() for view, _ in start.shown[-4:]} == {0}


def test_the_fixed_regions_are_fitted_with_the_first_task_model(policy, monkeypatch) -> None:
    seen = []
    fit = lambda task_model, *_: seen.append(task_model) or as_boxes([[0, 0, 1, 1]])  # noqa: E731
    monkeypatch.setattr(eval_detection, "fit_fixed", fit)
    task_models = {"oracle": Oracle(), "mllm": policy(looks)}
    boxes_table(("fixed",), scattered(2), None, None, task_models, scattered(1))
    assert seen == [task_models["oracle"]]


def test_an_unknown_method_is_an_error(policy) -> None:
    with pytest.raises(ConfigError, match="--methods psychic is not known; there are: direct, direct-native"):
        boxes_table(("psychic",), scattered(1), policy(looks), policy(looks))


def cut_off(model: Scripted, view: Image.Image, question: str) -> str:
    """A policy whose good answer hits the length limit right behind its last tag."""
    return looks(model, view, question).removesuffix(END)


def test_the_page_scores_an_answer_as_training_does(policy) -> None:
    """An answer that was cut off has no format, however well what there is of it can be read."""
    examples = scattered(3)
    rows = boxes_table(("random", "cot", "active"), examples, policy(looks), policy(cut_off))
    benchmark = DetectionBenchmark("toys", evaluated(CONFIG, methods=("random",)))
    pairs, counts = eval_page.gallery(eval_output.Finished(benchmark, "val", rows), examples, None)
    assert len(pairs) == 3 == sum(counts.values())
    for before, after in sorted(pairs, key=lambda pair: examples.index(pair[0].example)):
        assert before.example is after.example and (before.title, after.title) == ("cot", "active")
        assert before.regions == after.regions != ()
        assert (before.error, before.score.terms["format"]) == ("unfinished", 0.0)
        assert (after.error, after.score.terms["format"]) == (None, 1.0)
    by_iou = DetectionBenchmark("toys", benchmark.config, replace(CONFIG, coverage="iou"))
    as_iou = by_iou.sample(examples[0], rows[2].records[0], "active")
    assert (pairs[0][1].score.terms["coverage"], as_iou.score.terms["coverage"]) == (1.0, 0.0)  # its IoU is below 0.5


# ---------------------------------------------------------------------- the end of a training run


def test_held_out_pictures_are_the_first_of_their_split() -> None:
    assert eval_setup.held_out(TrainConfig(eval_examples=0)) == []
    assert [example.id for example in eval_setup.held_out(TrainConfig(eval_examples=2))] == [
        "scenes-val-000000",
        "scenes-val-000001",
    ]


def test_before_and_after_leaves_numbers_and_a_page(tmp_path, policy, capsys) -> None:
    config = TrainConfig(crop_side=64, output_dir=str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 2.5}\n')
    start = policy(blind)
    end_of_run(policy(looks), start, start, scattered(3), config, OneProcess())
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["setting"]["method"] for row in rows] == ["direct", "random", "grid", "cot", "active", "oracle-regions"]
    page = (tmp_path / "report.html").read_text()
    assert "cot" in page and "active" in page and "the middle" in page
    said = capsys.readouterr().out.splitlines()
    assert any("| oracle-regions" in line for line in said) and str(tmp_path / "report.html") in said[-1]
