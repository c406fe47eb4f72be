"""families.py: the table against transformers' own classes, and which way of scoring a run gets."""

from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.families import FAMILIES, check_notes, scoring_of
from activeo3.model import VisionLanguageModel

CONFIG = TrainConfig()
EPISODES = replace(CONFIG, task="zoom_qa")
DOCS = Path(__file__).parent.parent / "docs" / "families.md"


@torch.no_grad()
def test_every_family_is_saved_and_loaded(
    every_family: VisionLanguageModel, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    """By plain transformers and by us: the same class, the same answer's logits, bit for bit."""
    vlm = every_family
    vlm.save(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == vlm.family
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    again = VisionLanguageModel.load(str(tmp_path), torch.float32)
    assert type(plain) is type(again.model) is type(vlm.model) and again.scoring == FAMILIES[vlm.family].scoring
    packed = [one.pack(one.encode([picture(64, 48)], ["Where?"]), [[(20, 21, 22), (23,)]]) for one in (vlm, again)]
    expected = vlm.forward_packed(packed[0])
    assert torch.equal(vlm.forward_packed(packed[0], plain), expected)
    torch.testing.assert_close(again.forward_packed(packed[1]), expected, rtol=0, atol=1e-5)


def test_coordinates_are_those_of_the_table(every_family: VisionLanguageModel) -> None:
    pixels = every_family.family == "qwen2_5_vl"
    assert every_family.text_scale((640, 480)) == ((640, 480) if pixels else (1000, 1000))


def test_every_family_is_described() -> None:
    described = [line.split("`")[1] for line in DOCS.read_text().splitlines() if line.startswith("| `qwen")]
    assert described == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_is_scored_as_its_family_needs(family: str) -> None:
    states = family.startswith("qwen3_5")
    for sees in (False, True):
        assert scoring_of(family, CONFIG, sees) == ("cached" if states else "packed")
        assert scoring_of(family, replace(CONFIG, scoring="rows"), sees) == "rows"
        assert scoring_of(family, replace(CONFIG, scoring="cached"), sees) == "cached"
    assert scoring_of(family, EPISODES, False) == ("cached" if states else "packed")
    assert scoring_of(family, EPISODES, True) == ("rows" if states else "packed")
    with pytest.raises(
        ConfigError,
        match="^--scoring cached reads the crops .* set --train_only to the text tower, or use --scoring rows.$",
    ):
        scoring_of(family, replace(EPISODES, scoring="cached"), True)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_running_state_cannot_do_is_one_sentence(family: str) -> None:
    packed, notes = replace(CONFIG, scoring="packed"), replace(EPISODES, memory="notes")
    if not FAMILIES[family].states:
        check_notes(family, notes)
        assert scoring_of(family, packed, True) == "packed"
        return
    with pytest.raises(
        ConfigError, match=f"^--scoring packed .* a {family} model has layers with a running state .* at auto.$"
    ):
        scoring_of(family, packed, True)
    with pytest.raises(
        ConfigError, match=f"^--memory notes .* a {family} model takes every view .* use --memory views.$"
    ):
        check_notes(family, notes)
    check_notes(family, EPISODES)
    check_notes(family, EvalConfig(checkpoint=("data/tiny",)))


def test_an_evaluation_with_notes_is_refused_for_a_running_state(
    make_vlm: Callable[..., VisionLanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)  # evaluate.py is a script beside the package
    import evaluate

    make_vlm("qwen3_5").save(tmp_path / "model")
    config = EvalConfig(
        checkpoint=(tmp_path / "model",), start=tmp_path / "model", benchmark=("plates",), task="zoom_qa", memory="notes",
        limit=1, output_dir=tmp_path / "out",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="^--memory notes"):
        evaluate.main(config)
