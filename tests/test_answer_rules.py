"""answer_rules.py: the published rules, with their oddities, against what the published programs say."""

import doctest

import pytest

from activeo3 import answer_rules
from activeo3.answer_rules import lmms_eval_word, mme_script


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(answer_rules).failed == 0


@pytest.mark.parametrize(
    "text, value",
    [("Yes", "yes"), ("no.", "no"), ("NO!", "no"), ("Not sure", "no"), ("Eyes", "yes"), ("know", "no"), ("I know", None),
     ("The answer is yes", None), ("y", None), ("It's", None), ("", None), ("no, yes", "no"), ("<think>no</think>**Yes**", "yes")],
)  # fmt: skip
def test_mme_looks_at_four_letters(text: str, value: str | None) -> None:
    assert mme_script(text).value == value and (mme_script(text).error is None) == (value is not None)


WAY = "Which way?\n\nA. Left\nB. Right\nC. Left turn\nD. 3.5 m"


@pytest.mark.parametrize(
    "text, question, value",
    [
        ("Two", "How many?", "2"), ("ten", "How many?", "10"), ("two.", "How many?", "two"), ("Two cars", "How many?", "two cars"),
        ("3.5", "How long?", "35"),  # punctuation goes from the answer, and not from the right one
        ("The answer is Two", "How many?", "the answer is two"),
        ("B", WAY, "b"), ("(B)", WAY, "b"), ("b.", WAY, "b"), ("B.", WAY, "b"), ("B. Right", WAY, "b"), ("It is Right.", WAY, "b"),
        ("right", WAY, "right"),  # the words of an option count in their own case only
        ("Left turn", WAY, "a"),  # the first option whose words begin there
        ("3.5 m", WAY, "35 m"),  # an option with punctuation is never found
        ("The answer is B", WAY, "the answer is b"), ("", WAY, None), ("...", "Which?", None),
    ],
)  # fmt: skip
def test_realworldqa_by_lmms_evals_rule(text: str, question: str, value: str | None) -> None:
    """Values of lmms-eval 0.6.1, its filters run by hand."""
    assert lmms_eval_word(text, question).value == value


def test_what_is_cut_off_has_that_name() -> None:
    assert mme_script("The", finished=False).error == lmms_eval_word("", "?", finished=False).error == "unfinished"
    assert mme_script("").error == lmms_eval_word("", "?").error == "empty" and mme_script("x").error == "no_yes_or_no"
