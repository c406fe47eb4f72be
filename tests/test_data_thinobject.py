"""data_thinobject.py: ThinObject-5K's folders, its masks by a plain comparison, and what is broken in them."""

import re
from pathlib import Path

import numpy as np
import pytest
from data_folders import mask_of, thin_set
from PIL import Image

from activeo3 import data_thinobject
from activeo3.data import open_dataset
from activeo3.data_io import DataError
from activeo3.geometry import rle_to_mask
from activeo3.rewards import covered
from activeo3.types import ParsedAnswer, Region, Rollout


def test_every_picture_has_its_mask_and_the_box_around_it(tmp_path: Path) -> None:
    data = open_dataset("thinobject5k", "val", thin_set(tmp_path))
    assert (data.name, data.split, [example.id for example in data]) == ("thinobject5k", "val", ["bee", "web.v2"])
    for seed, example in enumerate(data):
        wanted = mask_of(seed) >= 128
        assert np.array_equal(rle_to_mask(example.masks()[0]), wanted)
        assert example.areas.tolist() == [wanted.sum()] == [20]
        # Rows 5 to 14, columns from 5 + seed + 2 to 14 + seed + 3, both ends included.
        assert example.boxes_px.tolist() == [[7 + seed, 5, 18 + seed, 15]]
        assert example.size_px == (30, 20) and abs(example.image.getpixel((0, 0))[0] - 200) < 4
        assert example.image_id == seed + 1 and example.query == data_thinobject.QUERY
    assert [path.name for path in data.paths] == ["bee.jpg", "web.v2.jpg"]


def test_coverage_by_purity_reads_the_masks(tmp_path: Path) -> None:
    example = open_dataset("thinobject5k", "val", thin_set(tmp_path))[0]
    shares = {}
    for name, region in (("on it", Region(*example.boxes_px[0])), ("beside it", Region(20.0, 0.0, 30.0, 5.0))):
        shares[name] = covered(Rollout(example, (), "", True, ParsedAnswer(()), (region,)), "purity")
    assert shares == {"on it": 1.0, "beside it": 0.0}


def test_lists_may_name_pictures_or_masks_and_have_empty_lines(tmp_path: Path) -> None:
    root = thin_set(tmp_path)
    (tmp_path / "ThinObject5K" / "list" / "val.txt").write_text("bee.jpg\r\n\r\n  web.v2.png \n")
    assert [example.id for example in open_dataset("thinobject5k", "val", root)] == ["bee", "web.v2"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "thinobject5k has no question in its split 'val'"),
        ("\n \n", "thinobject5k has no question in its split 'val'"),
        ("../bee.png\n", "line 1 has a file_name outside of its folder"),
    ],
)
def test_a_broken_list_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    root = thin_set(tmp_path)
    (tmp_path / "ThinObject5K" / "list" / "val.txt").write_text(text)
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        open_dataset("thinobject5k", "val", root)
    assert "val.txt" in str(caught.value)
    (tmp_path / "ThinObject5K" / "list" / "val.txt").write_text("bee.png\nweb.v2.png\nbee.jpg\n/bee.png\n")
    data = open_dataset("thinobject5k", "val", root)
    assert tuple(data.items) == ("bee", "web.v2") and "line 3 names 'bee' again, as line 1 does" in data.dropped[0]
    assert len(data.dropped) == 2 and "line 4 has a file_name outside of its folder" in data.dropped[1]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="neither val.txt in ThinObject5K/list or thin_object_detection/ThinObject5K/list nor"
    ):
        open_dataset("thinobject5k", "val", str(tmp_path))
    root = thin_set(tmp_path)
    with pytest.raises(DataError, match="neither test.txt in ThinObject5K/list or"):
        open_dataset("thinobject5k", "test", root)
    with pytest.raises(DataError, match="there is no split 'dev', choose one of test, train, val"):
        open_dataset("thinobject5k", "dev", root)


def test_a_bad_picture_or_mask_is_one_examples_matter(tmp_path: Path) -> None:
    data = open_dataset("thinobject5k", "val", thin_set(tmp_path))
    mask, picture = (tmp_path / "ThinObject5K" / part for part in ("masks/bee.png", "images/bee.jpg"))

    def complaint() -> str:
        with pytest.raises(DataError) as caught:
            data[0]
        assert caught.value.example_id == "bee" and data[1].id == "web.v2"
        return str(caught.value)

    Image.new("L", (30, 20), 127).save(mask)
    assert "bee.png: the mask of example bee is empty" in complaint()
    Image.new("L", (29, 20), 200).save(mask)
    assert "bee.jpg: the picture of example bee is 30x20 but 29x20 in the annotations" in complaint()
    mask.write_bytes(mask.read_bytes()[:40])
    assert "bee.png: the mask of example bee cannot be read" in complaint()
    mask.unlink()
    assert "bee.png: the mask of example bee is missing" in complaint()
    Image.new("L", (30, 20), 200).save(mask)
    picture.unlink()
    assert "bee.jpg: the picture of example bee is missing" in complaint()
