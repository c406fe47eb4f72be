"""answers.py: what models write when a letter or a word is asked for, with near misses of every rule."""

import doctest
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeo3 import answers
from activeo3.answers import ERRORS, LETTERS, listed_options, plain, read_letter, read_word, read_yes_or_no
from activeo3.prompts import question_prompt

OPTIONS = ("The cat", "dark red", "red", "vitamin C")


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(answers).failed == 0


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("[b]", "B"), ("**B**", "B"), ("`B`\n", "B"), (r"\boxed{B}", "B"),
        ("B) dark red", "B"), ("B: dark red", "B"), ("(B) the cat.", "B"), ("B. vitamin C", "B"), ("B\n\nBecause A is wrong.", "B"),
        ("The answer is B", "B"), ("the answer is (b).", "B"), ("Answer: B", "B"), ("Option B is right", "B"),
        ("The correct answer is B, not A.", "B"), ("The answer is A because it purrs.", "A"), ("The choice: C. red", "C"),
        ("I think it is B.", "B"), ("It must be D!", "D"), ("B, because (A) is wrong", "B"),
        ("The cat", "A"), ("the cat.", "A"), ("It is the cat!", "A"), ("red", "C"), ("It's dark red.", "B"),
        ("It is vitamin C.", "D"), ("vitamin c", "D"), ("The answer is a red thing", "C"),
        ("<think>A or C?</think><answer>B</answer>", "B"), ("<think>A</think> B", "B"), ("<answer>B", "B"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
    ],
)  # fmt: skip
def test_letters_that_are_read(text: str, letter: str) -> None:
    assert read_letter(text, OPTIONS) == (letter, None)


@pytest.mark.parametrize(
    "text, error",
    [
        ("", "empty"), (" .", "no_letter"), ("<answer></answer>", "empty"), ("E", "no_such_option"), ("(z)", "no_such_option"),
        ("A or B", "several_letters"), ("Both A and B", "several_letters"), ("(A) or (B)?", "several_letters"),
        ("A. The cat\nB. dark red\nC. red", "several_letters"), ("The cat is red", "several_letters"),
        ("A cat", "no_letter"), ("A dog and a bird", "no_letter"), ("I don't know", "no_letter"), ("U.S.", "no_letter"),
        ("It's not B", "no_letter"), ("Cat", "no_letter"), ("infrared", "no_letter"), ("I can see it", "no_letter"),
    ],
)  # fmt: skip
def test_letters_that_are_not_there(text: str, error: str) -> None:
    assert read_letter(text, OPTIONS) == (None, error)


def test_an_answer_that_was_cut_off_is_read_if_it_had_begun() -> None:
    assert read_letter("B. The ca", OPTIONS, finished=False).value == "B"
    assert read_letter("Let me look at", OPTIONS, finished=False).error == "unfinished"
    assert read_yes_or_no("Let me look", finished=False).error == "unfinished"
    assert read_yes_or_no("Yes, I can", finished=False).value == "yes"
    assert read_word("a long wor", "What?", finished=False).error == "unfinished"
    assert read_letter("", OPTIONS, finished=False).error == read_yes_or_no("", False).error == "unfinished"


def test_every_letter_is_read_and_only_those_that_were_offered() -> None:
    options = [f"thing number {word}" for word in string.ascii_lowercase]
    for letter in LETTERS:
        for form in ("{}", "({})", "{}.", "The answer is {}.", "{}) thing"):
            assert read_letter(form.format(letter), options) == (letter, None), form
        if letter > "D":
            assert read_letter(f"({letter})", options[:4]).error == "no_such_option"


@pytest.mark.parametrize(
    "text, value",
    [
        ("Yes", "yes"), ("no.", "no"), ("NO", "no"), ("y", "yes"), ("N", "no"), ("Yes, there is no dog.", "yes"),
        ("No, yes is wrong", "no"), ("The answer is yes.", "yes"), ("There is no car", "no"), ("**Yes**", "yes"),
        ("<think>yes?</think>No", "no"), ("<answer>no</answer>", "no"),
    ],
)  # fmt: skip
def test_yes_and_no(text: str, value: str) -> None:
    assert read_yes_or_no(text) == (value, None)


@pytest.mark.parametrize(
    "text, error",
    [("", "empty"), ("!", "empty"), ("Not sure", "no_yes_or_no"), ("Nothing", "no_yes_or_no"), ("yesterday", "no_yes_or_no"),
     ("y is it", "no_yes_or_no"), ("It is yes or no", "yes_and_no")],
)  # fmt: skip
def test_neither_yes_nor_no(text: str, error: str) -> None:
    assert read_yes_or_no(text) == (None, error)


def test_words_are_equal_but_for_case_punctuation_and_written_numbers() -> None:
    for text in ("2", "Two", "two.", " 2 ", "The answer is 2", "Answer: two"):
        assert read_word(text, "How many cars?").value == "2" == plain("2")
    for text in ("22", "2 cars", "twofold", "1", "2.5"):
        assert read_word(text, "How many cars?").value != "2"
    assert read_word("Speed limit: 55 MPH", "What?").value == "speed limit 55 mph"
    assert read_word("answering", "What?").value == "answering"
    assert read_word(" ... ", "What?").error == "empty"


REAL = "In which direction is the front wheel?\n\nA. Straight.\nB. Left.\nC. Right.\nPlease answer directly with only the letter of the correct option and nothing else."


def test_options_that_the_question_lists() -> None:
    assert listed_options(REAL) == ("Straight.", "Left.", "Right.")
    assert listed_options("How many?\nPlease answer directly with a single word or number.") == ()
    assert listed_options("A. is one\nC. is missing B") == () == listed_options("A. only one")
    assert listed_options("B. begins\nC. late") == ()
    assert read_word("Left", REAL).value == read_word("b", REAL).value == read_word("B. Left.", REAL).value == "B"
    assert read_word("D", REAL).error == "no_such_option"


def test_options_that_our_prompt_lists_are_found_in_it() -> None:
    prompt = question_prompt("Which?", OPTIONS, hint="A. is no option here")
    assert listed_options(prompt.split("\n", 1)[1]) == OPTIONS


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=5), st.booleans())
def test_no_text_raises_and_every_failure_has_a_name(text: str, options: list[str], finished: bool) -> None:
    for reading in (read_letter(text, options, finished), read_yes_or_no(text, finished), read_word(text, "What?", finished)):
        assert (reading.value is None) == (reading.error is not None) and reading.error in (None, *ERRORS)
    letter = read_letter(text, options, finished).value
    assert letter is None or letter in LETTERS[: len(options)]
