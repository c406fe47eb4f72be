"""Reads an answer: the regions and boxes of a JSON list, a letter, yes or no, a word. Every failure has a name.

prompts.py owns the questions, this room the reading of answers. A prompt asks for the bare letter or word, and mostly
gets it. These are also read: "(B) the cat.", "The answer is B.", "**B**", an option's own words, and an answer in
``<answer>`` tags or behind ``</think>``, as a trained policy may write it.

Regions: where this differs from the paper (ACTIVE-O3, arXiv 2505.21457v2, B.1)
  1. Format asks for the tags once each, think before answer; the paper asks for their presence only,
     which tags in any order and number satisfy.
  2. Only the text inside ``<answer>`` is read, so a box inside a thought is no region. In the task role, which has no
     tags, only the text outside of thoughts is read.
  3. More regions than the prompt allows are a format error, and the surplus is dropped. Where the prompt asks for an
     exact number (segmentation), fewer are an error as well; the paper does not say.

Words: what the benchmarks say, and where this differs from it
  1. Letters (MMBench, arXiv 2307.06281, section 4; HR-Bench; V*Bench): rules first, and a language model for what
     they cannot decide. Here rules only, more of them and for Chinese as well; what they cannot decide is wrong
     and counted by its name.
  2. Yes or no (MME): its authors' script (``calculation.py`` of arXiv 2306.13394), ``mme_script``. Words (RealWorldQA):
     xAI has published no script; ``lmms_eval_word`` is the rule of lmms-eval 0.2.0 to 0.7.1, those of the paper's time.
     (0.7.2 takes any letter from A to D, wherever it stands, and words as they are.) Both read an answer without its
     thoughts, tags, asterisks and white space, which the evaluated models do not write.
     ``read_yes_or_no`` and ``read_word`` are kinder, for the column beside them.

The ``lenient`` parser is for models that were not trained here. Where it finds more than the strict one, its result
keeps the strict one's error, so the format reward is the same, and the strict result (``ParsedAnswer.strict``).

An answer that breaks the rules is data, never an exception: ``ParsedAnswer.error`` and ``Reading.error`` name the rule.
"""

import re
from itertools import islice
from typing import Any, Iterator, NamedTuple, Sequence

from activeo3.answer_text import (
    ANSWERS,
    LAYOUT,
    MAX_BOXES,
    NO_ANSWER_TAG,
    NO_JSON,
    TAGS,
    Item,
    TextBox,
    boxes_in,
    decoded,
    limited,
    normalised,
    without_thoughts,
)  # fmt: skip
from activeo3.types import ParsedAnswer

REGION_ERRORS = (
    "unfinished", "tags", "json", "not_a_list", "no_bbox_2d", "not_four_numbers", "not_finite", "empty", "too_many",
    "too_few",
)  # fmt: skip
"""Everything that can be wrong with an answer of regions or boxes, in the order in which it is checked."""

# ---------------------------------------------------------------------- regions and boxes

_OPEN_BODY = re.compile(rf"<answer>({NO_ANSWER_TAG})", re.IGNORECASE)
_OBJECT = re.compile(r"\{[^{}]*+\}")
_BOX, _POINT = "bbox_2d", "point_2d"


def read_regions(
    text: str, finished: bool = True, most: int = 3, least: int = 1, parser: str = "strict"
) -> ParsedAnswer:
    """Read the sensing role's answer (paper, B.1: R_format needs the tags and a JSON list of bbox_2d).

    Args:
        text: the sampled answer without its end token.
        finished: False when the answer hit the length limit.
        most: how many regions the prompt allowed; further ones are dropped and are an error.
        least: how many it asked for at least; fewer are an error, but are kept.
        parser: ``lenient`` looks for boxes of any form where the strict reader finds none, also in a thought if there
            is no answer beside it; the error stays.

    Boxes are kept when the JSON is right although the tags are not: only the format reward is lost.

    >>> read_regions('<think>left</think><answer>[{"bbox_2d": [0, 0, 500, 500]}]</answer>').boxes_text
    ((0.0, 0.0, 500.0, 500.0),)
    >>> read_regions('[{"bbox_2d": [0, 0, 500, 500]}]').error
    'tags'
    """
    text = limited(text)
    strict = _read_regions(text, finished, most, least)
    if parser == "strict" or strict.error is None or strict.boxes_text:
        return strict
    return _lenient_or(strict, boxes_in(answer_in(text) or text)[:most])


def _read_regions(text: str, finished: bool, most: int, least: int) -> ParsedAnswer:
    """``read_regions`` of the strict reader."""
    layout = LAYOUT.fullmatch(text)
    bodies = [layout.group(2)] if layout else ANSWERS.findall(text)
    if not bodies:
        return ParsedAnswer((), (), "tags" if finished else "unfinished")
    action = _read_list(bodies[-1])
    error = action.error or (None if action.boxes_text else "empty")
    if error is None and len(action.boxes_text) > most:
        error = "too_many"
    if error is None and len(action.boxes_text) < least:
        error = "too_few"
    if not layout:
        error = "tags"
    return ParsedAnswer(action.boxes_text[:most], action.labels[:most], error if finished else "unfinished")


def _lenient_or(strict: ParsedAnswer, items: Sequence[Item]) -> ParsedAnswer:
    """The lenient reader's boxes, if they are more than the strict one's."""
    if len(items) <= len(strict.boxes_text):
        return strict
    return ParsedAnswer(tuple(item.box for item in items), tuple(item.label for item in items), strict.error, strict)


def answer_in(text: str) -> str:
    """The part of an answer that the lenient reader reads, without tags: the text of the last ``<answer>``, closed or
    not; without one, all text outside of thoughts.

    >>> answer_in("<think>a</think>so <answer>b"), answer_in("a</think>b</answer>"), answer_in("<think>a")
    ('b', 'b', '')
    """
    outside = without_thoughts(text)
    bodies = [body for body in _OPEN_BODY.findall(outside) if body.strip()]
    return (bodies[-1] if bodies else TAGS.sub(" ", outside)).strip()


def read_boxes(text: str, finished: bool = True, points: bool = False, parser: str = "strict") -> ParsedAnswer:
    """Read the task role's answer: a JSON list of bbox_2d, bare or fenced; ``[]`` means nothing is there.

    Any other text has an error, and is read object by object: whole boxes count in any container, beside broken ones,
    and in a list that is cut short. Thoughts are not read. With ``points`` an item may be a point_2d instead; a point
    is a box without sides. The ``lenient`` parser's boxes count where they are more; the error stays. Things beyond the
    MAX_BOXES-th are not read.

    >>> read_boxes('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6', finished=False)
    ParsedAnswer(boxes_text=((1.0, 2.0, 3.0, 4.0),), labels=('',), error='unfinished')
    >>> read_boxes('[{"point_2d": [5, 6]}]', points=True).boxes_text
    ((5.0, 6.0, 5.0, 6.0),)
    >>> read_boxes('{"cups": [{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": null}]}')
    ParsedAnswer(boxes_text=((1.0, 2.0, 3.0, 4.0),), labels=('',), error='not_a_list')
    """
    strict = _read_boxes(text, finished, points)
    if parser == "strict" or strict.error is None:
        return strict
    return _lenient_or(strict, boxes_in(answer_in(text), points))


def _read_boxes(text: str, finished: bool, points: bool) -> ParsedAnswer:
    """``read_boxes`` of the strict reader."""
    outside = without_thoughts(text)
    action = _read_list(outside, points)
    if action.error is None:
        return action
    items = [_read_item(item, points) for item in islice(_objects_of(outside, points), MAX_BOXES)]
    kept = [item for item in items if not isinstance(item, str)]
    error = "unfinished" if action.error == "json" and not finished else action.error
    return ParsedAnswer(tuple(box for box, _ in kept), tuple(label for _, label in kept), error)


def _objects_of(text: str, points: bool) -> Iterator[dict[str, Any]]:
    """Every object with a box (or point) of a JSON value, wherever in it; of a text that is none, every whole
    object."""
    whole = decoded(text, strict=False)  # not strict: a label may have line breaks
    if whole is not NO_JSON:
        yield from objects_in(whole, points)
    else:
        for item in _OBJECT.findall(text):
            yield from objects_in(decoded(item, strict=False), points)


def objects_in(value: Any, points: bool = False) -> Iterator[dict[str, Any]]:
    """The objects with a box inside a JSON value, in their order; those inside one of them are not looked for."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and (_BOX in value or points and _POINT in value):
            yield value
        elif isinstance(value, (dict, list)):
            waiting += reversed(list(value.values()) if isinstance(value, dict) else value)


def _read_list(text: str, points: bool = False) -> ParsedAnswer:
    """A JSON list of objects with ``bbox_2d``, fenced or not; the first thing that is wrong is the error."""
    items = decoded(text)
    if not isinstance(items, list):
        return ParsedAnswer((), (), "json" if items is NO_JSON else "not_a_list")
    boxes, labels = [], []
    for item in items[:MAX_BOXES]:
        found = _read_item(item, points)
        if isinstance(found, str):
            return ParsedAnswer((), (), found)
        boxes.append(found[0])
        labels.append(found[1])
    return ParsedAnswer(tuple(boxes), tuple(labels))


def _read_item(item: Any, points: bool) -> tuple[TextBox, str] | str:
    """The box and the label of an object of a list, or what is wrong with it."""
    if not isinstance(item, dict) or not (_BOX in item or points and _POINT in item):
        return "no_bbox_2d"
    box = item[_BOX] if _BOX in item else _as_box(item[_POINT])
    error = box_error(box)
    if error:
        return error
    x1, y1, x2, y2 = map(float, box)
    return (x1, y1, x2, y2), str(item.get("label", ""))


def _as_box(point: Any) -> Any:
    """A point [x, y] as the box without sides [x, y, x, y]; None for anything else."""
    return point * 2 if isinstance(point, list) and len(point) == 2 else None


def box_error(box: Any) -> str | None:
    """What keeps ``box`` from being four finite numbers, or None."""
    if not isinstance(box, list) or len(box) != 4:
        return "not_four_numbers"
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in box):
        return "not_four_numbers"
    # Beyond 1e9 a number is no coordinate of any picture. The comparison is also False for NaN.
    return None if all(abs(value) < 1e9 for value in box) else "not_finite"


# ---------------------------------------------------------------------- words

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORD_ERRORS = ("unfinished", "empty", "no_letter", "several_letters", "no_such_option", "no_yes_or_no", "yes_and_no")
"""Everything that can be wrong with an answer in words."""
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Reading(NamedTuple):
    """The value of an answer, a letter, "yes" or "no", or a word; or the error."""

    value: str | None
    error: str | None = None


_BODY = re.compile(rf"<answer>({NO_ANSWER_TAG})(?:</answer>|\Z)")
_BOXED = re.compile(r"\\boxed\{([^{}]*+)\}")
_WORDS = re.compile(r"\w++")
_ANSWER_IS = re.compile(r"\A(?:the )?(?:final )?answer(?: is)? ")
_CJK = "\u3400-\u9fff"  # is written without spaces, so that it may touch a letter
_HAS_CJK = re.compile(f"[{_CJK}]")
_BEFORE, _AFTER = rf"(?<![^\W{_CJK}])", rf"(?![^\W{_CJK}])"  # no word touches the letter
_NO_ARTICLE = r"(?! (?!(?:or|and|because|since|as|is)\b)[a-z])"  # what follows "A" where it is a letter, not a word
_COLON = r"\s*+(?::\s*+)?+"
_STATED = re.compile(
    rf"(?:answer|option|choice)(?: is)?{_COLON}(?:option |choice )?[(\[]?([B-HJ-Z]|[AI]{_NO_ARTICLE})(?!['’]){_AFTER}",
    re.IGNORECASE,
)
_STATED_IN_CHINESE = re.compile(
    rf"(?:答案|选项|选择|选)(?:应该|应当|应)?(?:是|为|选)?{_COLON}(?:选项\s*+)?[(\[]?([A-Z]){_AFTER}"
)
_JOINED = re.compile(rf"{_BEFORE}([A-Z])[)\]]?(?:,? or |,? and |, ?|/| ?& ?| ?[或和、] ?)[(\[]?([A-Z]){_AFTER}")
_LINE = re.compile(r"^[^\w\n]*+([A-Z])(?:[).:,、\]]|[^\w\n]*+$)", re.MULTILINE)
_BRACKETS = re.compile(r"[(\[]([A-Z])[)\]]")
_LONE = re.compile(rf"{_BEFORE}(?<![.'’])(?<!\bnot )(?<!不是)(?<!不选)([A-Z])(?!['’]){_AFTER}" + _NO_ARTICLE)
_OPTION = re.compile(r"^[^\S\n]*+\(?([A-Z])[.):]\s++(\S[^\n]*+)", re.MULTILINE)
_EDGES = ".,;:!?\"'()[]。、“”‘’《》「」"


def final_text(text: str) -> str:
    """The answer in a text: inside the last ``<answer>``, or all of it, thoughts left out.

    >>> final_text("<think>A or B?</think> <answer>B</answer>")
    'B'
    """
    outside = without_thoughts(text)
    bodies = _BODY.findall(outside)
    body = bodies[-1] if bodies else outside
    return _BOXED.sub(r"\1", body).replace("*", "").replace("`", "").strip()


def plain(text: str) -> str:
    """Lower case, without punctuation around words, numbers up to ten as digits, wide letters as narrow ones.

    >>> plain("  The Answer: two cats. "), plain("3.5 m/s")
    ('the answer 2 cats', '3.5 m/s')
    """
    words = [word.strip(_EDGES) for word in normalised(text).lower().split()]
    return " ".join(str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word for word in words if word)


def read_letter(text: str, options: Sequence[str], finished: bool = True) -> Reading:
    """The letter of one of the options. The first rule that finds any letter decides; it must find one only.

    In order: the text is a letter or an option; "the answer is B"; "B or C"; a line begins with "B." or "(B)", or is
    "B"; "(B)" elsewhere; the words of exactly one option; a capital letter that stands alone.

    >>> read_letter("(B) the cat.", ["dog", "cat"]).value, read_letter("A cat", ["dog", "cat"]).value
    ('B', 'B')
    >>> read_letter("答案是Ｂ。", ["狗", "猫"]).value, read_letter("图中是一只猫。", ["狗", "猫"]).value
    ('B', 'B')
    >>> read_letter("A or B", ["dog", "cat"]).error
    'several_letters'
    """
    body, known = normalised(final_text(text)), LETTERS[: len(options)]
    if not body:
        return Reading(None, "empty" if finished else "unfinished")
    alone = body.strip(_EDGES + " \n").upper()
    if len(alone) == 1 and alone in LETTERS:
        return Reading(alone) if alone in known else Reading(None, "no_such_option")
    words = plain(body)
    rules = (
        lambda: {letter for letter, option in zip(known, options) if plain(option) == words},
        lambda: {letter.upper() for letter in _STATED.findall(body) + _STATED_IN_CHINESE.findall(body)},
        lambda: {letter for pair in _JOINED.findall(body) for letter in pair},
        lambda: set(_LINE.findall(body)),
        lambda: set(_BRACKETS.findall(body)),
        lambda: _options_in(words, options),
        lambda: set(_LONE.findall(body)),
    )
    for rule in rules:
        found = rule() & set(known)
        if found:
            return Reading(*found) if len(found) == 1 else Reading(None, "several_letters")
    return Reading(None, "no_letter" if finished else "unfinished")


def _options_in(body: str, options: Sequence[str]) -> set[str]:
    """Letters of the options whose words occur in a ``plain`` text; "red" is not among them where "dark red" is."""
    there, spaced, closed = {}, f" {body} ", "".join(body.split())
    for letter, option in zip(LETTERS, options):
        words = plain(option)
        if _HAS_CJK.search(words) and "".join(words.split()) in closed:
            there[letter] = "".join(words.split())
        elif words and f" {words} " in spaced:
            there[letter] = f" {words} "
    return {
        letter
        for letter, words in there.items()
        if not any(words in other and words != other for other in there.values())
    }


def read_yes_or_no(text: str, finished: bool = True) -> Reading:
    """ "yes" or "no": the first word, or else the only one of the two in the text.

    >>> read_yes_or_no("Yes, there is no dog.").value, read_yes_or_no("Not sure.").error
    ('yes', 'no_yes_or_no')
    """
    words = _WORDS.findall(final_text(text).lower())
    if not words:
        return Reading(None, "empty" if finished else "unfinished")
    first = {"y": "yes", "n": "no"}.get(words[0], words[0]) if len(words) == 1 else words[0]
    found = {first} & {"yes", "no"} or set(words) & {"yes", "no"}
    if len(found) == 1:
        return Reading(*found)
    return Reading(None, "yes_and_no" if found else "no_yes_or_no" if finished else "unfinished")


def read_word(text: str, question: str, finished: bool = True) -> Reading:
    """The ``plain`` words of an answer, "the answer is" left out; a letter where the question lists options.

    >>> read_word("The answer is Two.", "How many cars are there?").value
    '2'
    >>> read_word("left", "Where is it?\\nA. left\\nB. right").value
    'A'
    """
    options = listed_options(question)
    if options:
        return read_letter(text, options, finished)
    if not finished:
        return Reading(None, "unfinished")
    words = _ANSWER_IS.sub("", plain(final_text(text)))
    return Reading(words) if words else Reading(None, "empty")


def listed_options(question: str) -> tuple[str, ...]:
    """The options that a question lists itself, one a line from "A." on; none if it does not.

    >>> listed_options("Which way?\\n\\nA. Left.\\nB. Right.\\nPlease answer with the letter.")
    ('Left.', 'Right.')
    """
    rows = _OPTION.findall(question)
    letters = "".join(letter for letter, _ in rows)
    return tuple(words.rstrip() for _, words in rows) if len(rows) > 1 and LETTERS.startswith(letters) else ()


# ---------------------------------------------------------------------- published rules

_LISTED_OPTION = re.compile(r"\b[A-Z]\.\s++([^\n]*+)")
_PUNCTUATION = re.compile(r"[^\w\s]")


def mme_script(text: str, finished: bool = True) -> Reading:
    """ "yes", or else "no", if the first four letters have it; so "Not sure" is a no, and late answers are none.

    >>> mme_script("Yes, a dog").value, mme_script("Not sure").value, mme_script("The answer is yes").error
    ('yes', 'no', 'no_yes_or_no')
    """
    beginning = final_text(text).lower()[:4]
    found = next((word for word in ("yes", "no") if word in beginning), None)
    return Reading(found, None if found else "unfinished" if not finished else "no_yes_or_no" if beginning else "empty")


def lmms_eval_word(text: str, question: str, finished: bool = True) -> Reading:
    """An answer in lower case, as it must equal the right one in lower case.

    A number word that stands alone becomes a digit, punctuation goes, and the words of an option that the question
    lists ("A. left") become its letter, wherever they stand; the first ones count.

    >>> lmms_eval_word("Two", "How many?").value, lmms_eval_word("It is left.", "Where?\\nA. left\\nB. right").value
    ('2', 'a')
    """
    words = final_text(text)
    words = str(NUMBER_WORDS.index(words.lower())) if words.lower() in NUMBER_WORDS else words
    words = _PUNCTUATION.sub("", words).strip()
    letters = {option.strip(): letter for letter, option in zip(LETTERS, _LISTED_OPTION.findall(question))}
    named = [option for option in letters if option in words]
    words = (letters[min(named, key=words.find)] if named else words).lower()
    return Reading(words) if words else Reading(None, "empty" if finished else "unfinished")
