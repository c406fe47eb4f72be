"""eval_runner.py: no work twice, and never a record of other weights, settings or pictures; rollouts come back as they
were."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import std

from activeo3 import checkpoint_files
from activeo3.checkpoint_files import alone, identity, seal
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import result_of, result_record, rollout_of, rollout_record
from activeo3.eval_runner import OneProcess, Processes, Runner, digest
from activeo3.eval_setup import loader
from activeo3.geometry import as_boxes
from activeo3.task_model_sam import Perfect
from activeo3.task_models import Oracle
from activeo3.task_perception import Answer
from activeo3.types import VQA, Example, Objects, ParsedAnswer, Region, Rollout, TaskResult

CONFIG = EvalConfig(checkpoint=("x",))


def runner_in(folder: Path, ranks: Processes | None = None) -> Runner:
    return Runner(ranks, folder)


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


def test_a_model_is_its_files_and_one_made_here_is_itself(make_vlm, tmp_path: Path) -> None:
    """One changed byte is another model; so is another base of an adapter, or another precision."""
    make_vlm("qwen3_vl").save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    load = lambda folder, dtype=torch.float32: loader(  # noqa: E731
        "", "", "auto", dtype, torch.device("cpu")
    )(str(tmp_path / folder))
    one, same, half = load("a"), load("b"), load("a", torch.bfloat16)
    assert one.identity == same.identity != half.identity
    path = tmp_path / "b" / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    identity.cache_clear()
    assert load("b").identity != one.identity
    runner = runner_in(tmp_path)
    own = [make_vlm("qwen3_vl") for _ in range(2)]
    assert runner._digest(own[0]) == runner._digest(own[0]) != runner._digest(own[1])
    assert len({runner._digest(model) for model in (*own, one, half, Oracle(), Perfect())}) == 6


def test_a_checkpoints_files_are_known_by_its_list(tmp_path: Path) -> None:
    (tmp_path / "activeo3.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    identity.cache_clear()
    read = identity(str(tmp_path))
    seal(tmp_path, alone, True)
    identity.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_files, "_digest", lambda path: pytest.fail("it is read again"))
        assert identity(str(tmp_path)) == read


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
    again = result_of(json.loads(json.dumps(result_record(plain))))
    assert np.array_equal(again.boxes_px, plain.boxes_px) and again.scores.dtype == plain.scores.dtype
    assert (again.texts, again.calls, again.tokens, again.lenient_only, again.strict) == (("x",), 2, 7, 1, None)


# ---------------------------------------------------------------------- progress


class Stream(io.StringIO):
    """stderr, which may be a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool, **more: Any) -> str:
    """What a runner shows of ten questions, of which four were known and six take ten seconds each."""
    now, stream = [1000.0], Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(std, "time", lambda: now[0])

    def work(block: Sequence[int]) -> list[int]:
        now[0] += 10.0
        return list(block)

    runner = Runner(total=10, **more)
    runner.expect(10)
    runner.map(lambda block: list(block), range(4), ("work",), block=1)
    runner.map(work, range(10), ("work",), block=1)
    runner.close()
    return stream.getvalue()


def test_a_terminal_gets_a_bar_that_counts_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert "evaluating: |" in text and "10 of 10 questions  ETA 00:00" in text and "\r" in text


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=False).split("\n")
    told = [line.strip() for line in lines if "evaluating" in line]
    assert 1 <= len(told) <= 3 and all(" of 10 questions  ETA " in line for line in told) and "\r" not in "".join(lines)


class Second(OneProcess):
    rank = 1


def test_one_rank_shows_and_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert shown(monkeypatch, terminal=True, ranks=Second()) == ""
    Runner(Second()).say("a row")
    Runner().say("a row")
    assert capsys.readouterr().out == "a row\n"
