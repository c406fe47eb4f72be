"""eval_core.py: no work twice, and never a record of other weights, settings or pictures; rollouts come back as they were."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from activeo3.eval_config import EvalConfig
from activeo3.eval_core import OneProcess, Processes, Runner, digest
from activeo3.eval_rollouts import outcome_of, outcome_record, rollout_of, rollout_record
from activeo3.geometry import as_boxes
from activeo3.progress import Progress
from activeo3.task_model_sam import Perfect
from activeo3.task_models import GroundingDino, Oracle
from activeo3.task_perception_words import Answer
from activeo3.types import VQA, Example, Objects, ParsedAnswer, Region, Rollout, TaskResult

CONFIG = EvalConfig(checkpoint=("x",))


def runner_in(folder: Path, ranks: Processes | None = None) -> Runner:
    return Runner(ranks, folder, Progress(10, speaks=False))


def example(**changes: Any) -> Example:
    image = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3))
    return replace(Example("e", image, "star", as_boxes([[1, 1, 3, 3]])), **changes)


def test_no_item_is_worked_on_twice(tmp_path: Path) -> None:
    done: list[int] = []

    def square(block: Sequence[int]) -> list[int]:
        done.extend(block)
        return [item**2 for item in block]

    assert runner_in(tmp_path).map(square, [3, 1, 2], ("square",), block=1) == [9, 1, 4] and done == [3, 1, 2]
    second = runner_in(tmp_path)
    assert second.map(square, [5, 2, 3], ("square",), block=1) == [25, 4, 9] and done == [3, 1, 2, 5]
    assert second.progress.finished == 3 and second.progress.worked == 1
    assert second.map(lambda block: [item**3 for item in block], [3], ("cube",), block=1) == [27]
    second.close()
    assert not tmp_path.exists()
    assert runner_in(tmp_path).map(square, [3], ("square",), block=1) == [9] and done[-1] == 3


def test_items_come_in_blocks_and_in_order(tmp_path: Path) -> None:
    seen: list[int] = []
    found = runner_in(tmp_path).map(lambda block: seen.append(len(block)) or block, range(40), ())
    assert found == [*range(40)] and seen == [16, 16, 8]
    assert Runner().map(lambda block: block, [], ()) == []


def test_numbers_and_texts_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = [[0.1 + 0.2, 1e-310, -0.0, 2.0**60, 1 / 3], "caf\xe9 \ud800 \x00", None, True]
    first, again = (runner_in(tmp_path).map(lambda _: [values], [0], ()) for _ in range(2))
    assert repr(first) == repr(again) == repr(Runner().map(lambda _: [values], [0], ())) == repr([values])


def test_torn_files_and_those_of_other_blocks_count_for_nothing(tmp_path: Path) -> None:
    done: list[int] = []

    def tenfold(block: Sequence[int]) -> list[int]:
        done.extend(block)
        return [item * 10 for item in block]

    runner_in(tmp_path).map(tenfold, [1, 2, 3, 4], (), block=1)
    whole = sorted(tmp_path.iterdir())
    whole[0].write_bytes(whole[0].read_bytes()[:-3])
    whole[1].write_bytes(b"\xff\xfe")
    whole[2].write_bytes(whole[3].read_bytes())
    done.clear()
    assert runner_in(tmp_path).map(tenfold, [1, 2, 3, 4], (), block=1) == [10, 20, 30, 40] and len(done) == 3


class Both(OneProcess):
    """Rank 0, which is told what rank 1 has kept."""

    theirs: dict[str, Any] = {}

    def all_gather(self, mine: Any) -> list[Any]:
        return [mine, self.theirs]


def test_what_another_rank_kept_is_known_to_all(tmp_path: Path) -> None:
    """Folders may be each machine's own: rank 0 knows one block, rank 1 the other."""
    for rank in (0, 1):
        runner_in(tmp_path / str(rank)).map(lambda block: [item * 10 for item in block], [rank], (), block=1)
    Both.theirs = {path.stem: json.loads(path.read_text())["records"] for path in (tmp_path / "1").iterdir()}
    assert runner_in(tmp_path / "0", Both()).map(lambda block: pytest.fail("it is known"), [0, 1], (), block=1) == [
        0,
        10,
    ]


CHANGES = {
    "pixel": lambda: example(image=Image.fromarray(np.full((6, 8, 3), 7, dtype=np.uint8))),
    "shape": lambda: example(image=example().image.transpose(Image.Transpose.ROTATE_90)),
    "query": lambda: example(query="ring"),
    "id": lambda: example(id="f"),
    "box": lambda: example(boxes_px=as_boxes([[1, 1, 3, 3.0000001]])),
    "crowd": lambda: example(crowd=np.array([True])),
    "field": lambda: example(vqa=VQA("?", options=("a", "b"))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_example_is_another_block(change: str, tmp_path: Path) -> None:
    runner = runner_in(tmp_path)
    assert runner._digest(example()) == runner._digest(example()) != runner._digest(CHANGES[change]())


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"regions": 2}, {"crop_shape": "aspect"}, {"box_threshold": 0.3}, {"task_batch": 1}]
)
def test_another_setting_is_another_block(change: dict, tmp_path: Path) -> None:
    runner = runner_in(tmp_path)
    assert runner._digest(CONFIG) != runner._digest(replace(CONFIG, **change))
    assert runner._digest(CONFIG) == runner._digest(
        replace(CONFIG, checkpoint=("y",), resamples=3)
    )  # these decide no job


def test_one_changed_weight_is_another_model(make_vlm, make_detector, tmp_path: Path) -> None:
    runner, folder = runner_in(tmp_path), make_detector("grounding-dino")
    detectors = [GroundingDino.load(folder, torch.device("cpu"), 0.1, 0.1) for _ in range(2)]
    for one, other in ((make_vlm("qwen3_vl"), make_vlm("qwen3_vl")), detectors):
        assert runner._digest(one) == runner_in(tmp_path)._digest(other)
        with torch.no_grad():
            next(other.model.parameters()).view(-1)[-1] += 1e-6
        assert runner._digest(one) != runner_in(tmp_path)._digest(other)
    assert len({runner._digest(model) for model in (Oracle(), Perfect(), make_vlm("qwen3_vl"), detectors[0])}) == 4


def test_regions_and_their_order_count(tmp_path: Path) -> None:
    runner = runner_in(tmp_path)
    parts = [[(Region(0, 0, 1, 1),), ()], [(), (Region(0, 0, 1, 1),)], [(Region(0, 0, 1, 2),), ()], []]
    assert len({runner._digest(part) for part in parts}) == 4
    with pytest.raises(TypeError, match="a object has no digest"):
        runner._digest(object())
    assert digest("a", b"b") == digest(b"a", "b") != digest("ab")


@pytest.mark.parametrize(
    "fields",
    [
        {"vqa": VQA("?", options=("a", "b"))}, {"vqa": VQA("?", options=("b", "a"))}, {"vqa": VQA("?", hint="Read.", options=("a", "b"))},
        {"vqa": VQA("?", ("B",), options=("a", "b"))}, {"objects": Objects(as_boxes([]), (), (), checked=frozenset({"cup", "hat"}))},
        {"areas": np.array([3.0])}, {"areas": np.array([3.5])}, {"draft": ({"counts": "1", "size": [1, 1]},)},
    ],
)  # fmt: skip
def test_every_field_of_an_example_counts_and_the_same_fields_count_the_same(fields: dict, tmp_path: Path) -> None:
    runner = runner_in(tmp_path)
    own, again = (runner._digest(example(**fields)) for _ in range(2))
    assert own == again
    assert runner._digest(example()) != own != runner._digest(example(**fields | {"text": "more"}))


def test_rollouts_and_outcomes_come_back_as_they_were() -> None:
    strict = ParsedAnswer((), (), "json")
    actions = [
        ParsedAnswer(((1.5, 2.0, 3.0, 4.0),), ("a",), None, strict),
        Answer(((1.0, 2.0, 1.0, 2.0),), ("",), "no_count", None, 3, "caf\xe9"),
    ]
    mask = np.arange(12).reshape(3, 4) % 3 == 0
    plain = TaskResult(as_boxes([[1, 2, 3, 4]]), np.array([0.25]), ("x",), 2, 7, lenient_only=1)
    for action in actions:
        outcome = TaskResult(as_boxes([]), np.zeros(0), (), 0, 0, mask, plain, 0)
        rollout = Rollout(example(), (1, 2), "text", True, action, (Region(0.0, 1.0, 2.5, 3.0),), outcome)
        found = rollout_of(rollout.example, json.loads(json.dumps(rollout_record(rollout))))
        assert (
            replace(found, result=None, example=None).__dict__ == replace(rollout, result=None, example=None).__dict__
        )
        assert type(found.action) is type(action) and found.action.strict == action.strict
        assert np.array_equal(found.result.mask, mask) and found.result.boxes_px.shape == (0, 4)
    again = outcome_of(json.loads(json.dumps(outcome_record(plain))))
    assert np.array_equal(again.boxes_px, plain.boxes_px) and again.scores.dtype == plain.scores.dtype
    assert (again.texts, again.calls, again.tokens, again.lenient_only, again.strict) == (("x",), 2, 7, 1, None)
