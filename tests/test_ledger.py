"""ledger.py: no job twice, and never a result of other weights, settings or pictures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from PIL import Image

from activeo3.eval_config import EvalConfig
from activeo3.geometry import as_boxes
from activeo3.ledger import Job, Ledger, digest
from activeo3.progress import Progress
from activeo3.schema import Example, Region
from activeo3.taskmodels import GroundingDino, Oracle

CONFIG = EvalConfig(checkpoint=("x",))


def book(folder: Path, gather: Callable = lambda mine: [mine]) -> Ledger:
    return Ledger(folder, lambda work, parts: [work(part) for part in parts], gather, Progress(10, speaks=False))


def example(**changes: Any) -> Example:
    image = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3))
    return replace(Example("e", image, "star", as_boxes([[1, 1, 3, 3]])), **changes)


def test_no_job_is_done_twice(tmp_path: Path) -> None:
    done: list[int] = []
    job = Job(("square",), lambda part: done.append(part) or part**2)
    assert book(tmp_path).share(job, [3, 1, 2]) == [9, 1, 4] and done == [3, 1, 2]
    second = book(tmp_path)
    assert second.share(job, [5, 2, 3]) == [25, 4, 9] and done == [3, 1, 2, 5]
    assert second.progress.finished == 3 and second.progress.worked == 1
    assert second.share(Job(("cube",), lambda part: part**3), [3]) == [27]
    second.close()
    assert not tmp_path.exists()
    assert book(tmp_path).share(job, [3]) == [9] and done[-1] == 3


def test_numbers_and_texts_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = [[0.1 + 0.2, 1e-310, -0.0, 2.0**60, 1 / 3], "caf\xe9 \ud800 \x00", None, True]
    job = Job((), lambda _: values)
    (first,), (again,) = book(tmp_path).share(job, [0]), book(tmp_path).share(job, [0])
    assert repr(first) == repr(again) == repr(values)


def test_torn_files_and_those_of_other_jobs_count_for_nothing(tmp_path: Path) -> None:
    job = Job((), lambda part: part * 10)
    book(tmp_path).share(job, [1, 2, 3, 4])
    whole = sorted(tmp_path.iterdir())
    whole[0].write_bytes(whole[0].read_bytes()[:-3])
    whole[1].write_bytes(b"\xff\xfe")
    whole[2].write_bytes(whole[3].read_bytes())
    done: list[int] = []
    assert book(tmp_path).share(job._replace(work=lambda part: done.append(part) or part * 10), [1, 2, 3, 4]) == [10, 20, 30, 40]
    assert len(done) == 3


def test_what_another_rank_kept_is_known_to_all(tmp_path: Path) -> None:
    """Folders may be each machine's own: rank 0 knows one job, rank 1 the other."""
    job = Job((), lambda part: part * 10)
    book(tmp_path / "0").share(job, [1])
    book(tmp_path / "1").share(job, [2])
    other = book(tmp_path / "1")
    theirs = {path.stem: json.loads(path.read_text())["result"] for path in other.folder.iterdir()}
    ledger = book(tmp_path / "0", lambda mine: [mine, theirs])
    assert ledger.share(job._replace(work=lambda part: pytest.fail("it is known")), [1, 2]) == [10, 20]


CHANGES = {
    "pixel": lambda: example(image=Image.fromarray(np.full((6, 8, 3), 7, dtype=np.uint8))),
    "shape": lambda: example(image=example().image.transpose(Image.Transpose.ROTATE_90)),
    "query": lambda: example(query="ring"),
    "id": lambda: example(id="f"),
    "box": lambda: example(boxes_px=as_boxes([[1, 1, 3, 3.0000001]])),
    "crowd": lambda: example(crowd=np.array([True])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_example_is_another_job(change: str, tmp_path: Path) -> None:
    ledger = book(tmp_path)
    assert ledger._digest(example()) == ledger._digest(example()) != ledger._digest(CHANGES[change]())


@pytest.mark.parametrize("change", [{"seed": 1}, {"regions": 2}, {"crop_shape": "aspect"}, {"box_threshold": 0.3}, {"task_batch": 1}])
def test_another_setting_is_another_job(change: dict, tmp_path: Path) -> None:
    ledger = book(tmp_path)
    assert ledger._digest(CONFIG) != ledger._digest(replace(CONFIG, **change))
    assert ledger._digest(CONFIG) == ledger._digest(replace(CONFIG, checkpoint=("y",), resamples=3))  # these decide no job


def test_one_changed_weight_is_another_model(make_vlm, make_detector, tmp_path: Path) -> None:
    ledger, folder = book(tmp_path), make_detector("grounding-dino")
    detectors = [GroundingDino.load(folder, torch.device("cpu"), 0.1, 0.1) for _ in range(2)]
    for one, other in ((make_vlm("qwen3_vl"), make_vlm("qwen3_vl")), detectors):
        assert ledger._digest(one) == book(tmp_path)._digest(other)
        with torch.no_grad():
            next(other.model.parameters()).view(-1)[-1] += 1e-6
        assert ledger._digest(one) != book(tmp_path)._digest(other)
    assert len({ledger._digest(model) for model in (Oracle(), make_vlm("qwen3_vl"), detectors[0])}) == 3


def test_regions_and_their_order_count(tmp_path: Path) -> None:
    ledger = book(tmp_path)
    parts = [[(Region(0, 0, 1, 1),), ()], [(), (Region(0, 0, 1, 1),)], [(Region(0, 0, 1, 2),), ()], []]
    assert len({ledger._digest(part) for part in parts}) == 4
    with pytest.raises(TypeError, match="nobody said how a object"):
        ledger._digest(object())
    assert digest("a", b"b") == digest(b"a", "b") != digest("ab")
