"""task_model_sam.py: the click rule against a naive loop, and real SAM classes with tiny random weights
against the library's own processing.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from sam_models import DECODER, MEAN, STD, sam_1, sam_2
from transformers import Sam3TrackerConfig, Sam3TrackerModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam.processing_sam import SamProcessor

from activeo3 import data_scenes, eval_baselines
from activeo3.config import TrainConfig
from activeo3.geometry import mask_to_rle
from activeo3.metrics import mask_iou
from activeo3.model import ModelError
from activeo3.task_model_sam import Click, ClickCrop, Perfect, Sam, depth_inside, next_click
from activeo3.task_segmentation import (
    Draft,
    Segment,
    coarse_mask,
    error_regions,
    true_mask,
    with_first_masks,
    zoom_and_click,
)
from activeo3.types import Example, Region

CPU = torch.device("cpu")

# ---------------------------------------------------------------------- the click rule


def naive_depth(region: np.ndarray) -> np.ndarray:
    """Distance to the nearest pixel outside, by looking at all of them."""
    height, width = region.shape
    outside = [(y, x) for y in range(-1, height + 1) for x in range(-1, width + 1)
               if not (0 <= y < height and 0 <= x < width and region[y, x])]  # fmt: skip
    return np.array(
        [[min((y - v) ** 2 + (x - u) ** 2 for v, u in outside) ** 0.5 for x in range(width)] for y in range(height)]
    )


def naive_click(true: np.ndarray, mask: np.ndarray, before: list[Click]) -> Click | None:
    """The rule in the words of the docstring, pixel by pixel."""
    best, chosen = 0.0, None
    for positive, error in ((True, true & ~mask), (False, mask & ~true)):
        depth = naive_depth(error)
        for y, x in np.argwhere(error):
            if depth[y, x] > best and not any((click.x, click.y) == (x, y) for click in before):
                best, chosen = depth[y, x], Click(int(x), int(y), positive)
    return chosen


masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.tuples(
        *(
            st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
                lambda bits: np.array(bits).reshape(size)
            )
            for _ in range(2)
        )
    )  # fmt: skip
)


@given(masks)
def test_depth_and_click_are_those_of_the_naive_loop(pair: tuple[np.ndarray, np.ndarray]) -> None:
    true, mask = pair
    assert depth_inside(true) == pytest.approx(naive_depth(true))
    before: list[Click] = []
    for _ in range(4):
        click = next_click(true, mask, before)
        assert click == naive_click(true, mask, before)
        if click is None:
            break
        before.append(click)


def test_depth_in_large_smooth_regions() -> None:
    """Depths of many pixels, where steps to the side matter more than in noise."""
    y, x = np.mgrid[:40, :60]
    region = ((x - 30) ** 2 / 4 + (y - 20) ** 2 < 200) & ~((x - 22) ** 2 + (y - 18) ** 2 < 9)
    assert depth_inside(region) == pytest.approx(naive_depth(region))
    assert depth_inside(np.ones((31, 51), dtype=bool)).max() == 16
    assert not depth_inside(np.zeros((5, 7), dtype=bool)).any()


def test_the_deeper_error_is_corrected_and_a_tie_goes_to_the_missing_object() -> None:
    true, mask = np.zeros((20, 40), dtype=bool), np.zeros((20, 40), dtype=bool)
    true[2:9, 2:9] = True  # missing, 7 x 7
    mask[10:15, 20:39] = True  # surplus, larger in area, but only 5 high
    assert next_click(true, mask) == Click(5, 5, True)
    mask[8:17, 20:39] = True  # 9 high
    assert next_click(true, mask)[1:] == (12, False)
    mask[:] = False
    mask[2:9, 22:29] = True
    assert next_click(true, mask) == Click(5, 5, True)
    assert next_click(true, true) is None and next_click(true[:0], true[:0]) is None


def test_mask_iou() -> None:
    a, b = np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    assert mask_iou(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(1 / 3) and mask_iou(a, a) == 1.0


# ---------------------------------------------------------------------- real classes, random weights


def sam_3() -> Sam3TrackerModel:
    vit = dict(model_type="sam3_vit_model", hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
               image_size=56, patch_size=14, window_size=2, global_attn_indexes=[1], pretrain_image_size=28)  # fmt: skip
    vision = dict(model_type="sam3_vision_model", backbone_config=vit, fpn_hidden_size=32,
                  backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], scale_factors=[4.0, 2.0, 1.0, 0.5])  # fmt: skip
    prompt = dict(hidden_size=32, image_size=56, patch_size=14, mask_input_channels=4)
    return Sam3TrackerModel(
        Sam3TrackerConfig(
            vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER | dict(hidden_size=32)
        )
    )


MAKERS: dict[str, Callable[[], torch.nn.Module]] = {"sam": sam_1, "sam2": sam_2, "sam3_tracker": sam_3}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = MAKERS[request.param]()
        for parameter in model.parameters():  # wide, so that points, masks and pictures show in every logit
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return place


@pytest.fixture(scope="module")
def task_model(folder: Path) -> Sam:
    return Sam.load(str(folder), CPU)


def blob(size: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2


def draft(picture, size: tuple[int, int] = (300, 200), seed: int = 0) -> Draft:
    """A picture whose mask is half right: a disc, shifted."""
    return Draft(picture(*size, seed=seed), blob(size, (150, 100), 40), blob(size, (165, 100), 35))


def whole(one: Draft, mask: np.ndarray | None = None) -> ClickCrop:
    return ClickCrop.of(
        one.image, one.true, one.mask if mask is None else mask, Region(0.0, 0.0, *map(float, one.image.size))
    )


def by_hand(
    task_model: Sam, crop: Image.Image, points: list[tuple[float, float]], labels: list[int], **more
) -> np.ndarray:
    """Mask of a crop that has SAM's own size, so that nothing is resized before the model."""
    assert crop.size == (task_model.side, task_model.side)
    pixels = (np.asarray(crop) / 255 - MEAN) / STD
    with torch.no_grad():
        out = task_model.model(
            pixel_values=torch.from_numpy(pixels.transpose(2, 0, 1)).float()[None],
            input_points=torch.tensor([[points]], dtype=torch.float32), input_labels=torch.tensor([[labels]]), **more,
        )  # fmt: skip
    best = out.pred_masks[0, 0, out.iou_scores[0, 0].argmax()]
    return (F.interpolate(best[None, None], crop.size[::-1], mode="bilinear")[0, 0] > 0).numpy()


def test_the_first_click_is_the_librarys_answer(task_model: Sam, picture) -> None:
    """Far from the origin, in a crop of SAM's own size: the same pixels, the same point, the best of the masks."""
    side, (x, y) = task_model.side, (201, 77)
    size = (300, 200)
    true = blob(size, (x + 20, y + 33), 12)
    one = Draft(picture(*size, seed=3), true, np.zeros_like(true))
    (_, mask), = zoom_and_click(task_model, [one], [[Region(x, y, x + side, y + side)]], clicks=1)  # fmt: skip
    wanted = by_hand(task_model, one.image.crop((x, y, x + side, y + side)), [(20, 33)], [1], multimask_output=True)
    assert 0 < wanted.mean() < 1
    assert np.array_equal(mask[y : y + side, x : x + side], wanted)
    outside = np.ones_like(mask)
    outside[y : y + side, x : x + side] = False
    assert not mask[outside].any()


def test_sam_sees_a_wide_crop_as_its_processor_does(picture) -> None:
    """The one family whose processor needs no torchvision, on a crop that is padded below."""
    torch.manual_seed(1)
    model = sam_1()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    square = {"height": 64, "width": 64}
    processor = SamProcessor(
        SamImageProcessorPil(size={"longest_edge": 64}, pad_size=square, image_mean=MEAN, image_std=STD)
    )
    task_model = Sam(model, MEAN, STD)
    crop, point = picture(64, 36, seed=5), (11, 20)
    true = np.zeros((36, 64), dtype=bool)
    true[point[1], point[0]] = True
    inputs = processor(images=crop, input_points=[[list(map(float, point))]], input_labels=[[1]], return_tensors="pt")
    with torch.no_grad():
        out = model(
            **{key: inputs[key].float() for key in ("pixel_values", "input_points")}, input_labels=inputs.input_labels
        )
    (wanted,) = processor.image_processor.post_process_masks(
        out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], pad_size=square
    )
    ours = whole(Draft(crop, true, np.zeros_like(true)))
    assert task_model.pixels(ours) == pytest.approx(inputs.pixel_values[0].float().numpy(), abs=1e-5)
    task_model.correct([ours], clicks=1)
    assert ours.clicks == [Click(*point, True)]
    assert task_model.points(ours)[0] == pytest.approx(inputs.input_points[0, 0, 0].numpy())
    assert np.array_equal(ours.mask, wanted[0, out.iou_scores[0, 0].argmax()].numpy())


def test_later_clicks_come_with_the_mask_so_far(task_model: Sam, picture) -> None:
    side = task_model.side
    one = Draft(picture(side, side, seed=6), blob((side, side), (30, 30), 14), np.zeros((side, side), dtype=bool))
    crop = whole(one)
    task_model.correct([crop], clicks=1)
    logits, first = crop.logits.clone(), crop.mask.copy()
    again = whole(one)
    task_model.correct([again], clicks=2)
    assert again.clicks == [crop.clicks[0], next_click(one.true, first, crop.clicks)]
    points = [(click.x, click.y) for click in again.clicks]
    labels = [int(click.positive) for click in again.clicks]
    wanted = by_hand(task_model, one.image, points, labels, input_masks=logits[None], multimask_output=False)
    assert np.array_equal(again.mask, wanted)


def test_a_mask_that_is_there_is_told(task_model: Sam, picture) -> None:
    side = task_model.side
    picture_ = picture(side, side, seed=7)
    true, mask = blob((side, side), (20, 30), 16), blob((side, side), (34, 30), 16)
    crop = whole(Draft(picture_, true, mask))
    logits = task_model.as_logits(crop)
    assert logits.shape == (1, task_model.coarse, task_model.coarse) and set(logits.sign().unique().tolist()) >= {
        -1.0,
        1.0,
    }
    # Wherever a cell of the logits is sure, the mask's own pixels agree.
    cells = (
        mask.reshape(task_model.coarse, side // task_model.coarse, task_model.coarse, -1)
        if side % task_model.coarse == 0
        else None
    )
    if cells is not None:
        assert logits[0].numpy() == pytest.approx(10 * (2 * cells.mean(axis=(1, 3)) - 1), abs=1e-5)
    task_model.correct([crop], clicks=1)
    (click,) = crop.clicks
    assert click == next_click(true, mask)
    wanted = by_hand(
        task_model, picture_, [click[:2]], [int(click.positive)], input_masks=logits[None], multimask_output=False
    )
    assert np.array_equal(crop.mask, wanted)


def test_the_place_of_the_crop_is_all_that_moves_its_mask(task_model: Sam, picture) -> None:
    content, true = picture(160, 120, seed=8), blob((160, 120), (80, 70), 25)
    results = []
    for x, y in ((0, 0), (640, 380)):
        image, inside = Image.new("RGB", (800, 500)), np.zeros((500, 800), dtype=bool)
        image.paste(content, (x, y))
        inside[y : y + 120, x : x + 160] = true
        region = Region(x + 19.6, y + 20.2, x + 139.7, y + 99.5)  # 121 x 80 whole pixels
        ((_, mask),) = zoom_and_click(task_model, [Draft(image, inside, np.zeros_like(inside))], [[region]], clicks=3)
        results.append(mask[y : y + 120, x : x + 160])
        assert mask.sum() == results[-1].sum()
    assert np.array_equal(*results) and 0 < results[0].sum()
    assert (
        not results[0][:20].any()
        and not results[0][:, :19].any()
        and not results[0][100:].any()
        and not results[0][:, 140:].any()
    )


def test_other_crops_beside_change_nothing(task_model: Sam, picture) -> None:
    """Of other shapes, with a mask and without, and one that is already right."""
    drafts = [draft(picture, seed=k) for k in range(4)]
    drafts[1] = Draft(drafts[1].image, drafts[1].true, np.zeros_like(drafts[1].mask))
    drafts[2] = Draft(drafts[2].image, drafts[2].true, drafts[2].true)
    regions = [[Region(100.0, 50.0, 220.0, 150.0), Region(90.0, 90.0, 130.0, 180.0)], [Region(120.0, 40.0, 200.0, 180.0)],
               [Region(100.0, 50.0, 220.0, 150.0)], []]  # fmt: skip
    together = zoom_and_click(task_model, drafts, regions, clicks=2)
    assert [len(steps) for steps in together] == [3, 2, 2, 1]
    for one, own, steps in zip(drafts, regions, together):
        ((*alone,),) = zoom_and_click(task_model, [one], [own], clicks=2, batch=1)
        assert all(mask_iou(a, b) > 0.999 for a, b in zip(alone, steps, strict=True))
        assert np.array_equal(steps[0], one.mask)
    assert np.array_equal(together[2][1], drafts[2].true)  # nothing to click
    assert not np.array_equal(together[0][1], together[0][0])


def test_empty_windows_and_slivers_are_bad_regions_and_no_exception(task_model: Sam, picture) -> None:
    one = draft(picture)
    regions = [
        Region(150.0, 100.0, 150.0, 100.0),
        Region(400.0, 300.0, 500.0, 350.0),
        Region(150.2, 0.0, 150.9, 200.0),
        Region(0.0, 100.0, 300.0, 101.0),
    ]
    (steps,) = zoom_and_click(task_model, [one], [regions], clicks=2)
    assert len(steps) == 5 and np.array_equal(steps[0], steps[1]) and np.array_equal(steps[1], steps[2])
    changed = steps[3] != steps[2]
    assert not changed[:, :150].any() and not changed[:, 151:].any()


class Painter(Sam):
    """Reads off the points what a perfect SAM would: everything near the last positive click is object."""

    def _predict(self, crops, seen, told: bool) -> None:
        for crop, points in zip(crops, map(self.points, crops)):
            y, x = np.mgrid[: self.coarse, : self.coarse] * (self.side / self.coarse)
            near = (x - points[-1][0]) ** 2 + (y - points[-1][1]) ** 2
            crop.logits = torch.from_numpy(100.0 - near)[None].float()
            crop.mask = self.as_mask(crop)


@pytest.mark.parametrize("region", [(140.0, 20.0, 240.0, 60.0), (200.0, 10.0, 230.0, 130.0)])
def test_what_is_clicked_is_what_is_marked(task_model: Sam, picture, region: tuple) -> None:
    """Click, square, logits and mask are one place in the picture, also in a wide and in a tall crop."""
    painter = Painter(task_model.model, MEAN, STD)
    true = blob((300, 200), (215, 40), 6)
    ((_, mask),) = zoom_and_click(
        painter, [Draft(picture(300, 200), true, np.zeros_like(true))], [[Region(*region)]], clicks=1
    )
    y, x = np.argwhere(mask).mean(axis=0)
    cell = 2 * max(region[2] - region[0], region[3] - region[1]) / task_model.coarse  # of the logits, in pixels
    assert abs(x - 215) < cell and abs(y - 40) < cell and mask.any()


def test_what_is_no_sam_is_named(folder: Path, make_vlm, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no/such/folder does not exist"):
        Sam.load("no/such/folder", CPU)
    make_vlm("qwen3_vl").save(tmp_path)
    with pytest.raises(ModelError, match="qwen3_vl model; supported are sam, sam2"):
        Sam.load(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ModelError, match="preprocessor_config.json has no 'image_mean'"):
        Sam.load(str(tmp_path), CPU)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if "vision_encoder" in name)
    save_file(weights | {name: weights[name] * torch.nan}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="has weights that are not finite, vision_encoder"):
        Sam.load(str(tmp_path), CPU)
    loaded = Sam.load(str(folder), CPU)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())


# ---------------------------------------------------------------------- the oracle, and first masks


def test_the_oracle_makes_every_region_right_and_leaves_the_rest(picture) -> None:
    one = draft(picture)
    regions = [Region(90.3, 55.0, 150.0, 120.9), Region(140.0, 50.0, 260.0, 90.0), Region(0.0, 0.0, 300.0, 200.0)]
    (steps,) = zoom_and_click(Perfect(), [one], [regions], clicks=1)
    for k, mask in enumerate(steps):
        for y in range(0, 200, 3):
            for x in range(0, 300, 3):
                inside = any(r.x1 < x + 1 and x < r.x2 and r.y1 < y + 1 and y < r.y2 for r in regions[:k])
                assert mask[y, x] == (one.true if inside else one.mask)[y, x]
    assert [mask_iou(mask, one.true) for mask in steps] == sorted(mask_iou(mask, one.true) for mask in steps)
    assert np.array_equal(steps[3], one.true) and np.array_equal(one.mask, draft(picture).mask)


def test_the_oracle_draws_a_region_in_cells() -> None:
    """Of 4 x 4 cells: a picture of 80 x 40 pixels has them at 20 x 10, a region of 4 pixels at one."""
    true = np.zeros((40, 80), dtype=bool)
    true[10:20, 20:60] = True  # whole cells
    true[33, 5:75] = True  # a line, a tenth of each cell
    one = Draft(Image.new("RGB", (80, 40)), true, np.zeros_like(true))
    large, small = Region(0.0, 0.0, 80.0, 40.0), Region(4.0, 31.0, 8.0, 35.0)
    ((_, coarse, fine),) = zoom_and_click(Perfect(4), [one], [[large, small]], clicks=1)
    assert not coarse[25:].any() and coarse[12:18, 30:50].all() and not coarse[:5].any()
    assert np.array_equal(fine[31:35, 4:8], true[31:35, 4:8]) and fine.sum() == coarse.sum() + 3
    config = TrainConfig(task="segment", task_model="oracle")
    assert Perfect.of(config).cells == 32 and Perfect.of(replace(config, least_seen=0.0)).cells is None
    assert Perfect.of(replace(config, crop_side=840, least_seen=28.0)).cells == 120


def test_good_regions_mend_and_tiles_do_harm() -> None:
    """On the embedded world, as the oracle sees crops; to the pixel, the tiles make every picture right."""
    examples = with_first_masks(Perfect(), [data_scenes.example("train", index) for index in range(6)], TrainConfig())
    drafts = [Draft.of(example) for example in examples]
    tiles, good = (
        [eval_baselines.grid_regions(one, 3) for one in examples],
        [error_regions(one.error, 3) for one in drafts],
    )
    mean = lambda oracle, regions: np.mean([  # noqa: E731
        mask_iou(steps[-1], one.true) for steps, one in zip(zoom_and_click(oracle, drafts, regions, clicks=1), drafts)
    ])  # fmt: skip
    eyes, first = Perfect.of(TrainConfig()), np.mean([mask_iou(one.mask, one.true) for one in drafts])
    assert mean(eyes, tiles) < first - 0.1 and mean(eyes, good) > first + 0.08
    assert mean(Perfect(), tiles) == 1.0


def asked(picture, truth: np.ndarray, name: str = "e") -> Example:
    return Example(
        name, picture(300, 200, seed=2), "disc", np.array([[0.0, 0.0, 1.0, 1.0]]), masks=lambda: [mask_to_rle(truth)]
    )


def test_a_first_mask_is_made_once_and_by_either_maker(task_model: Sam, folder: Path, picture) -> None:
    examples = [asked(picture, blob((300, 200), (150 + 10 * k, 100), 40), name) for k, name in enumerate("ef")]
    coarse = with_first_masks(Perfect(), examples, TrainConfig())
    for one, example in zip(coarse, examples):
        assert np.array_equal(Draft.of(one).mask, coarse_mask(true_mask(example), example.id))
    assert all(a is b for a, b in zip(with_first_masks(Perfect(), coarse, TrainConfig()), coarse))
    config = TrainConfig(first_mask="sam", task_checkpoint=str(folder))
    together = with_first_masks(task_model, examples, config)
    for one, example in zip(together, examples):
        (alone,) = with_first_masks(Segment(config).load_task_model("sam", CPU), [example], config)
        assert one.draft == alone.draft
        empty = Draft(example.image, true_mask(example), np.zeros((200, 300), dtype=bool))
        by_click = whole(empty)
        task_model.correct([by_click], clicks=1)
        assert np.array_equal(Draft.of(one).mask, by_click.mask) and by_click.mask.any()
    assert isinstance(Segment(config).load_task_model("oracle", CPU), Perfect)
