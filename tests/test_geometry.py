"""geometry.py against naive loops, pycocotools, Pillow and the processor of transformers."""

import math

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from activeo3 import geometry
from activeo3.geometry import Frame, as_boxes, crop, fitted


def random_boxes(rng: np.random.Generator, count: int, side: float = 100.0) -> np.ndarray:
    low = rng.uniform(0, side, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.1, side, (count, 2))], axis=1)


def naive_overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def naive_area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def test_overlap_measures_agree_with_loops_and_pycocotools() -> None:
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 30), random_boxes(rng, 20)
    shared = np.array([[naive_overlap(p, q) for q in b] for p in a])
    union = np.array([[naive_area(p) + naive_area(q) for q in b] for p in a]) - shared
    whole = np.array([[naive_area(p)] for p in a])
    np.testing.assert_allclose(geometry.intersection(a, b), shared, atol=1e-9)
    np.testing.assert_allclose(geometry.iou(a, b), shared / union, atol=1e-12)
    np.testing.assert_allclose(geometry.containment(a, b), shared / whole, atol=1e-12)
    xywh_a, xywh_b = (np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], axis=1) for x in (a, b))
    theirs = coco_mask.iou(xywh_a, xywh_b, [0] * len(b))
    np.testing.assert_allclose(geometry.iou(a, b), theirs, atol=1e-9)


def test_empty_and_degenerate_boxes_give_zeros_and_not_nan() -> None:
    none, point = as_boxes([]), as_boxes([[5, 5, 5, 5]])
    assert geometry.iou(none, point).shape == (0, 1)
    assert geometry.iou(point, point).tolist() == [[0.0]]
    assert geometry.containment(point, as_boxes([[0, 0, 9, 9]])).tolist() == [[0.0]]
    assert geometry.nms(none, np.zeros(0)).tolist() == []


def test_ordered_and_clipped() -> None:
    assert geometry.ordered(as_boxes([[9, 1, 2, 8]])).tolist() == [[2, 1, 9, 8]]
    assert geometry.clipped(as_boxes([[-5, 3, 50, 99]]), (40, 30)).tolist() == [[0, 3, 40, 30]]


def naive_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    left = sorted(range(len(boxes)), key=lambda k: (-scores[k], k))
    kept: list[int] = []
    while left:
        best = left.pop(0)
        kept.append(best)
        measure = [naive_overlap(boxes[best], boxes[k]) for k in left]
        union = [naive_area(boxes[best]) + naive_area(boxes[k]) for k in left]
        left = [k for k, s, u in zip(left, measure, union) if s / (u - s) <= threshold]
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_nms_agrees_with_a_loop_and_keeps_the_order_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 60), rng.integers(0, 3, 60) / 2  # many ties
    assert geometry.nms(boxes, scores, 0.3).tolist() == naive_nms(boxes, scores, 0.3)


def test_nms_of_equal_boxes_keeps_the_first() -> None:
    boxes = as_boxes([[0, 0, 9, 9]] * 3 + [[50, 50, 60, 60]])
    assert geometry.nms(boxes, np.ones(4)).tolist() == [0, 3]


@pytest.mark.parametrize("window", [(1, 1), (20000, 3), (3, 20000), (0.37, 911.2), (1e5, 1e5)])
@pytest.mark.parametrize("scale", [(1000, 1000), (28, 5600), (8400, 28)])
def test_frame_maps_there_and_back(window: tuple[float, float], scale: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 10000, 2)
    frame = Frame((x, y, x + window[0], y + window[1]), scale)
    text = rng.uniform(-50, 1050, (100, 4))
    np.testing.assert_allclose(frame.to_text(frame.to_px(text)), text, rtol=1e-6, atol=1e-6)
    corners = frame.to_text(as_boxes(frame.window_px))
    np.testing.assert_allclose(corners, [[0, 0, *scale]], atol=1e-6 * max(scale))


@pytest.mark.parametrize("window", [(0, 0, 0, 9), (5, 0, 4, 9), (0, 9, 9, 9)])
def test_frame_refuses_an_empty_window(window: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="positive sides"):
        Frame(window, (1000, 1000))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_crop_at_original_size_copies_the_pixels() -> None:
    image = noise(60, 40)
    cut = crop(image, (7, 5, 37, 25), (30, 20))
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(image)[5:25, 7:37])


@pytest.mark.parametrize("size", [(90, 60), (15, 10), (60, 20)])
def test_crop_agrees_with_cutting_first_away_from_the_border(size: tuple[int, int]) -> None:
    # At the border of the window Lanczos looks a few pixels outside; cutting first would hide them.
    image, window = noise(120, 90), (20, 30, 50, 50)
    ours = np.asarray(crop(image, window, size), dtype=int)
    naive = np.asarray(image.crop(window).resize(size, Image.Resampling.LANCZOS), dtype=int)
    rim = [math.ceil(3 * max(1, size[k] / (30, 20)[k])) for k in range(2)]
    inner = (slice(rim[1], -rim[1]), slice(rim[0], -rim[0]))
    np.testing.assert_allclose(ours[inner], naive[inner], atol=1)


def test_crop_and_frame_agree_where_a_pixel_is() -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    window = (20.25, 10.0, 120.75, 90.0)
    cut = np.asarray(crop(Image.fromarray(ramp), window, (300, 80)), dtype=float)[40, :, 0]
    centres = np.arange(300) + 0.5
    spots = np.stack([centres, centres * 0, centres, centres * 0], axis=1)
    # Pixel k has its centre at k + 0.5, in the original as in the crop.
    expected = Frame(window, (300, 80)).to_px(spots)[:, 0] - 0.5
    np.testing.assert_allclose(cut[5:-5], expected[5:-5], atol=1.0)


def test_fitted_is_the_processors_own_rounding() -> None:
    module = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    smart_resize = pytest.importorskip(module).smart_resize
    rng = np.random.default_rng(3)
    sides = np.exp(rng.uniform(0, np.log(6000), (800, 2))).astype(int) + 1
    limits = ((28, 56 * 56, 1280 * 28 * 28), (32, 4096, 2**24), (28, 784, 784))
    for width, height in sides.tolist():
        for factor, least, most in limits:
            if max(width, height) > 200 * min(width, height):
                with pytest.raises(ValueError):
                    fitted((width, height), factor, least, most)
                with pytest.raises(ValueError):
                    smart_resize(height, width, factor, least, most)
                continue
            theirs = smart_resize(height, width, factor, least, most)
            assert fitted((width, height), factor, least, most) == theirs[::-1], (width, height)


def test_fitted_leaves_its_own_result_alone() -> None:
    for size in [(1000, 500), (37, 2999), (4000, 4000), (30, 31)]:
        once = fitted(size, 28, 3136, 1003520)
        assert fitted(once, 28, 3136, 1003520) == once


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (3, 500), (512, 512)])
def test_with_shorter_side(size: tuple[int, int]) -> None:
    width, height = geometry.with_shorter_side(size, 224)
    assert min(width, height) == 224
    assert abs(width / height / (size[0] / size[1]) - 1) < 0.01


def test_mask_survives_run_length_encoding() -> None:
    mask = np.random.default_rng(4).random((37, 51)) > 0.7
    rle = geometry.mask_to_rle(mask)
    assert isinstance(rle["counts"], str) and rle["size"] == [37, 51]
    np.testing.assert_array_equal(geometry.rle_to_mask(rle), mask)
    assert coco_mask.area(rle) == mask.sum()
