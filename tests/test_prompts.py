"""prompts.py: every prompt names what is looked for and asks for all that is scored."""

import json
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeo3 import prompt_file, prompts
from activeo3.answer_parsing import read_regions
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_runner import Runner
from activeo3.prompt_file import placeholders, read_templates
from activeo3.prompts import TEMPLATES, episode_prompt, segmentation_prompt, sensing_prompt, task_prompt, zooms_turn
from activeo3.types import ParsedAnswer
from activeo3.zoom_calls import Call, ParsedTurn, read_turn

BOX = '{"bbox_2d": [1, 2, 30, 40]}'
ONE = ((1.0, 2.0, 30.0, 40.0),)


# ---------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("wording", prompts.WORDINGS)
@pytest.mark.parametrize("query", ["red star", "person's {hat}", 'the "big" one', "Größe 漢字"])
def test_a_prompt_names_what_is_looked_for(wording: str, query: str) -> None:
    assert query in sensing_prompt(query, wording)
    assert query in task_prompt(query, wording)
    assert query in segmentation_prompt(query, wording)
    assert len({ask(query, wording) for ask in (sensing_prompt, task_prompt, segmentation_prompt)}) == 3


def test_the_paper_wording_asks_for_everything_that_is_scored() -> None:
    text = sensing_prompt("boat", "paper", regions=5)
    for wanted in ("up to 5 regions", '{"bbox_2d": [x1, y1, x2, y2], "label"', "JSON", "overlap"):
        assert wanted in text
    layout = text[text.rindex("<think>") :]  # the layout it shows has the tags of an answer that is accepted
    shown = layout.replace("the JSON list", f"[{BOX}]")
    assert read_regions(shown) == ParsedAnswer(ONE, ("",))


@pytest.mark.parametrize("wording", prompts.WORDINGS)
def test_errors_of_a_mask_are_asked_for_in_an_exact_number(wording: str) -> None:
    assert "3 regions" in segmentation_prompt("boat", wording) and "up to" not in segmentation_prompt("boat", wording)
    assert "one region" in segmentation_prompt("boat", wording, regions=1)
    text = segmentation_prompt("boat", "paper")
    for wanted in (
        "exactly 3 regions",
        "translucent green mask",
        '{"bbox_2d": [x1, y1, x2, y2], "label": "boat segmentation error"}',
    ):
        assert wanted in text


def test_the_other_systems_call_is_asked_for_and_read() -> None:
    """What the prompt shows is its form, in which every call is read; but nobody zooms by copying the prompt."""
    for at_once in (1, 3):
        text = episode_prompt("What is it?", "zoom_roi", 3, at_once=at_once, least=1, notes=True)
        assert "What is it?" in text and "bbox_2d" not in text and "at least once" in text and "write down what" in text
        shown = text[text.index("<zoom_roi") : text.index("/>") + 2]
        assert read_turn(shown) == ParsedTurn((None,))
        for edge, value in zip(("left", "top", "right", "bottom"), ("0.1", "0.25", "0.5", "1")):
            shown = shown.replace(f'"{edge}"', f'"{value}"')
        assert shown == prompts.zoom_roi_call([0.1, 0.25, 0.5, 1.0]) and read_turn(
            f"<think>so {shown}</think>"
        ).call == Call((0.1, 0.25, 0.5, 1.0), True)
    assert episode_prompt("Why?", "zoom_roi", 0) == episode_prompt("Why?", "paper", 0)


edges = st.floats(0, 1)


@given(
    st.lists(st.tuples(edges, edges, edges, edges), min_size=1, max_size=3), st.sampled_from(prompts.EPISODE_WORDINGS)
)
def test_a_well_formed_turn_is_read_back_in_every_notation(boxes: list[tuple[float, ...]], wording: str) -> None:
    rounded = [[round(1000 * edge) for edge in box] for box in boxes]
    said = read_turn(zooms_turn(" there", rounded, wording, listed=True))
    scale = 1000 if wording == "zoom_roi" else 1
    assert [call.box for call in said.calls] == [
        tuple(edge / scale for edge in box) for box in rounded
    ] and said.answer is None


def test_an_unknown_wording_is_an_error() -> None:
    for ask in (sensing_prompt, task_prompt, segmentation_prompt):
        with pytest.raises(KeyError):
            ask("boat", "long")


# ---------------------------------------------------------------------- prompts of the user's

USES: dict[str, Callable[[str], str]] = {
    "sensing": lambda w: sensing_prompt("cup", w, 2),
    "looking": lambda w: prompts.looking_prompt("Is it?", w),
    "segmentation": lambda w: segmentation_prompt("cup", w),
    "task": lambda w: task_prompt("cup", w),
    "episode": lambda w: prompts.episode_prompt("Is it?", w, 3),
    "episode_at_once": lambda w: prompts.episode_prompt("Is it?", w, 3, at_once=2),
    "without_zoom": lambda w: prompts.episode_prompt("Is it?", w, 0),
    "min_zooms": lambda w: prompts.episode_prompt("Is it?", w, 3, least=1),
    "notes": lambda w: prompts.episode_prompt("Is it?", w, 3, notes=True),
    "think_first": lambda w: prompts.perception_prompt("ocr", "", w, thinking=True),
    **{task: lambda w, task=task: prompts.perception_prompt(task, "cup", w) for task in prompts.PERCEPTION},
    **{status: lambda w, status=status: prompts.shown(status, w) for status in prompts._OBSERVATIONS["paper"]},
    **{kind: lambda w, kind=kind: prompts.detector_prompt("cup", kind, w) for kind in prompts._DETECTOR},
}


def own(path: Path, **templates: Any) -> prompts.Wording:
    """The wording ``paper`` with these templates, from a json file."""
    path.write_text(json.dumps(templates))
    return prompts.Wording("paper", read_templates(path))


def test_every_template_can_be_replaced_and_no_other_text_changes(tmp_path: Path) -> None:
    assert USES.keys() == TEMPLATES.keys()
    for name, use in USES.items():
        fields = "".join(f"{{{field}}} " for field in sorted(set().union(*map(placeholders, TEMPLATES[name].values()))))
        wording = own(tmp_path / "mine.json", **{name: f'Mine: {fields}{{"bbox_2d": [1]}} {{ }} {{}}'})
        assert use("paper") == use(prompts.Wording("paper")) and "Mine" not in use("paper")
        assert "Mine: " in use(wording) and use(wording).count('{"bbox_2d": [1]} { } {}') == 1, name
        assert "cup" in use(wording) or "Is it?" in use(wording) or not {"{object} ", "{question} "} & {fields}
        for other in USES.keys() - {name, "min_zooms", "notes", "think_first"}:
            if name not in ("episode", "ocr"):  # beside which the three stand
                assert USES[other](wording) == USES[other]("paper"), (name, other)


def test_a_file_that_was_printed_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for wording in prompts.EPISODE_WORDINGS:
        prompt_file.main(["--wording", wording])
        (tmp_path / "all.toml").write_text(capsys.readouterr().out)
        printed = prompts.Wording("paper", read_templates(tmp_path / "all.toml"))
        assert printed.own.keys() == TEMPLATES.keys()
        for name, use in USES.items():
            if wording in TEMPLATES[name]:
                assert use(printed) == use(wording), name


@pytest.mark.parametrize(
    "templates, said",
    [
        ({"sense": "x"}, r"there is no template 'sense' \(did you mean sensing\?\); there are: sensing, looking"),
        (
            {"task": "Find {objekt}."},
            r"task has no placeholder \{objekt\} \(did you mean object\?\); it can have: \{object\}\.$",
        ),
        ({"zoom_limit": "{least}"}, r"zoom_limit has no placeholder \{least\}; it can have: none\.$"),
        ({"task": "Find it."}, r"task must have \{object\}, or the model is not told what is asked for\.$"),
        ({"task": 3}, r"task is a int, and must be a text\.$"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(templates: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^--prompt_file .*mine.json: {said}"):
        own(tmp_path / "mine.json", **templates)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("task = ")
    (tmp_path / "bad.json").write_text("[]")
    for name, said in (("bad.toml", "is no toml: "), ("bad.json", "holds no json object"), ("no.toml", "cannot be read: No such file"),
                       ("no.json", "there is no such file")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"--prompt_file .*{name}.*{said}"):
            TrainConfig(prompt_file=str(tmp_path / name))


def test_words_of_the_users_are_asked_and_belong_to_the_run(tmp_path: Path) -> None:
    """A file that changes later changes nothing in a config that has read it."""
    path = tmp_path / "mine.toml"
    path.write_text('task = "Show me {object}!"')
    config = TrainConfig(prompt_file=str(path))
    before = config.own_files
    path.write_text('task = "Where is {object}?"')
    assert task_prompt("cup", config.words) == "Show me cup!" and config.own_files is before
    again = TrainConfig(prompt_file=str(path))
    assert task_prompt("cup", again.words) == "Where is cup?" and again.own_files != before and config == again
    assert config.words == "short" and TrainConfig().own_files == {}
    assert Runner()._digest(config) != Runner()._digest(again)
