"""task_segmentation.py: first masks, the green overlay and the errors' squares, each against a naive loop or
pycocotools."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from activeo3 import data_scenes, task_segmentation
from activeo3.data_io import DataError
from activeo3.geometry import mask_to_rle
from activeo3.metrics import mask_iou
from activeo3.task_segmentation import (
    Draft,
    coarse_mask,
    covered_error,
    error_regions,
    overlaid,
    true_mask,
    windows,
    with_mask,
    wrong_share,
)
from activeo3.types import Example


def disc(size: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def example(masks: list[np.ndarray], crowd: list[bool] | None = None) -> Example:
    height, width = masks[0].shape
    boxes = np.zeros((len(masks), 4))
    return Example("e", Image.new("RGB", (width, height)), "star", boxes, crowd=None if crowd is None else np.array(crowd),
                   masks=lambda: [mask_to_rle(mask) for mask in masks])  # fmt: skip


# ---------------------------------------------------------------------- true and first masks


def test_the_true_mask_is_the_union_of_what_was_asked_for() -> None:
    parts = [disc((40, 30), (10, 10), 5), disc((40, 30), (14, 12), 6), disc((40, 30), (30, 20), 4)]
    assert np.array_equal(true_mask(example(parts)), parts[0] | parts[1] | parts[2])
    assert np.array_equal(true_mask(example(parts, [False, True, False])), parts[0] | parts[2])
    with pytest.raises(DataError, match="example e has none: choose thinobject5k or scenes") as caught:
        true_mask(Example("e", Image.new("RGB", (4, 4)), "star", np.zeros((0, 4))))
    assert caught.value.example_id == "e"


def test_a_first_mask_travels_with_its_example() -> None:
    truth, mask = disc((40, 30), (20, 15), 8), disc((40, 30), (24, 15), 8)
    one = with_mask(example([truth]), truth, mask)
    draft = Draft.of(one)
    assert np.array_equal(draft.true, truth) and np.array_equal(draft.mask, mask) and draft.image is one.image
    assert draft.error.sum() == sum(truth[y, x] != mask[y, x] for y in range(30) for x in range(40)) > 0


def test_a_coarse_mask_is_the_same_for_the_same_example_and_wrong_in_both_ways() -> None:
    agreed = []
    for index in range(12):
        one = data_scenes.example("val", index)
        truth = true_mask(one)
        before = truth.copy()
        mask = coarse_mask(truth, one.id)
        assert np.array_equal(truth, before) and np.array_equal(mask, coarse_mask(truth, one.id))
        assert not np.array_equal(mask, coarse_mask(truth, "another"))
        assert (truth & ~mask).any() and (mask & ~truth).any()
        agreed.append(mask_iou(mask, truth))
        iou = coco_mask.iou([mask_to_rle(mask)], [mask_to_rle(truth)], [0])[0, 0]
        assert agreed[-1] == pytest.approx(iou)
    assert 0.7 < np.mean(agreed) < 0.9 and min(agreed) > 0.4


def test_a_coarse_mask_loses_what_is_thin_and_errs_only_near_the_object(monkeypatch) -> None:
    truth = np.zeros((400, 640), dtype=bool)
    truth[100:200, 100:200] = True
    truth[149:150, 200:500] = True  # a line of one pixel; a cell has four
    plain = {"HOLES": 0, "LEAKS": 0}
    for name, value in plain.items():
        monkeypatch.setattr(task_segmentation, name, value)
    mask = coarse_mask(truth, "e")
    assert not mask[:, 210:].any() and mask_iou(mask[:, :200], truth[:, :200]) > 0.97
    monkeypatch.setattr(task_segmentation, "LEAKS", 3)
    leaking = coarse_mask(truth, "e")
    extra = leaking & ~mask
    most = task_segmentation.RADII[1] * truth.sum() ** 0.5 + 1
    near = np.argwhere(truth)
    places = np.argwhere(extra)[::37]
    assert len(places) and all(np.hypot(*(near - place).T).min() <= most for place in places)
    assert not (mask & ~leaking).any()


def test_masks_of_any_size_have_a_first_mask() -> None:
    assert not coarse_mask(np.zeros((20, 30), dtype=bool), "e").any()
    for shape in ((1, 1), (1, 300), (300, 2), (5, 4)):
        assert coarse_mask(np.ones(shape, dtype=bool), "e").shape == shape


# ---------------------------------------------------------------------- what the policy sees


def test_the_overlay_is_half_green_where_the_mask_is(picture) -> None:
    view, mask = picture(24, 16, seed=1), disc((24, 16), (9, 7), 5)
    shown = np.asarray(overlaid(view, mask), dtype=int)
    for y in range(16):
        for x in range(24):
            own = np.array(view.getpixel((x, y)))
            wanted = (own + [0, 255, 0]) / 2 if mask[y, x] else own
            assert np.abs(shown[y, x] - wanted).max() <= 0.5
    assert view.size == (24, 16)


def test_a_shrunk_view_takes_its_share_of_green(picture) -> None:
    """A view pixel of 4 x 4 picture pixels, of which some are in the mask."""
    mask = np.random.default_rng(0).random((32, 48)) < 0.4
    view = Image.new("RGB", (12, 8), (200, 100, 0))
    shown = np.asarray(overlaid(view, mask), dtype=float)
    share = mask.reshape(8, 4, 12, 4).mean(axis=(1, 3))[..., None]
    wanted = (1 - share / 2) * np.array([200, 100, 0]) + share / 2 * np.array([0, 255, 0])
    assert np.abs(shown - wanted).max() < 1.1  # shares are stored in 255 steps
    enlarged = np.asarray(overlaid(Image.new("RGB", (96, 64)), mask))[..., 1] > 0
    assert np.array_equal(enlarged, mask.repeat(2, axis=0).repeat(2, axis=1))


# ---------------------------------------------------------------------- errors and regions

REGIONS = [(3.2, 2.0, 11.7, 9.5), (8.0, -4.0, 30.0, 6.1), (5.0, 5.0, 5.0, 9.0), (40.0, 40.0, 50.0, 50.0)]


def test_coverage_and_share_of_errors_are_those_of_the_naive_loop() -> None:
    error = np.random.default_rng(2).random((14, 20)) < 0.3

    def touches(x: int, y: int, region: tuple) -> bool:
        x1, y1, x2, y2 = region
        return x1 < x + 1 and x < x2 and y1 < y + 1 and y < y2 and x2 > x1 and y2 > y1

    for regions in (REGIONS, REGIONS[:1], REGIONS[2:], []):
        wrong = [(x, y) for y in range(14) for x in range(20) if error[y, x]]
        inside = [place for place in wrong if any(touches(*place, region) for region in regions)]
        assert covered_error(error, regions) == pytest.approx(len(inside) / len(wrong))
        shares = []
        for region in regions:
            pixels = [error[y, x] for y in range(14) for x in range(20) if touches(x, y, region)]
            shares.append(sum(pixels) / len(pixels) if pixels else 0.0)
        assert wrong_share(error, regions) == pytest.approx(shares)
    assert covered_error(np.zeros((4, 5), dtype=bool), []) == 1.0
    assert [error[window].size for window in windows(REGIONS, error.shape)] == [9 * 8, 12 * 7, 0, 0]


def naive_squares(error: np.ndarray, count: int) -> list[int]:
    """How many wrong pixels each square takes, when the best place is sought by trying all of them."""
    side, left, taken = round(min(error.shape) / 4), error.copy(), []
    for _ in range(count):
        best = max(
            left[y : y + side, x : x + side].sum()
            for y in range(error.shape[0] - side + 1)
            for x in range(error.shape[1] - side + 1)
        )
        if best:
            taken.append(best)
        x1, y1, x2, y2 = map(int, error_regions(error, len(taken))[-1]) if best else (0, 0, 0, 0)
        left[y1:y2, x1:x2] = False
    return taken


def test_squares_take_the_most_errors_that_are_left() -> None:
    rng = np.random.default_rng(5)
    for size in ((31, 24), (24, 40)):
        error = np.zeros(size[::-1], dtype=bool)
        for _ in range(6):
            error |= disc(size, (int(rng.integers(size[0])), int(rng.integers(size[1]))), int(rng.integers(1, 5)))
        wanted = naive_squares(error, 3)
        left, taken = error.copy(), []
        for x1, y1, x2, y2 in error_regions(error, 3):
            assert 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1] and x2 - x1 == y2 - y1 == 6
            taken.append(left[int(y1) : int(y2), int(x1) : int(x2)].sum())
            left[int(y1) : int(y2), int(x1) : int(x2)] = False
        # Centring a square on its errors may bring further ones in, and never loses one.
        assert len(taken) == len(wanted) and all(got >= least for got, least in zip(taken, wanted))


def test_squares_are_centred_on_their_errors_and_stop_when_nothing_is_left() -> None:
    error = disc((90, 60), (50, 30), 4)
    assert error_regions(error, 3) in (((43.0, 23.0, 58.0, 38.0),), ((43.0, 22.0, 58.0, 37.0),))
    assert error_regions(np.zeros((60, 90), dtype=bool), 3) == ()
    assert covered_error(error, error_regions(error, 1)) == 1.0
