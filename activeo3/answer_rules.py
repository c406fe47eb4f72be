"""How the published evaluations of MME and RealWorldQA read an answer, by their own rules.

    MME           its authors' script (``calculation.py`` of arXiv 2306.13394): "yes" or "no" in the first four letters
    RealWorldQA   xAI has published no script. The rule is lmms-eval's, versions 0.2.0 to 0.7.1, those of the paper's time.
                  (0.7.2 has another: any letter from A to D, wherever it stands, and words as they are.)

Deviation: the rules read what ``answer_parsing.said`` leaves of a text, without thoughts, tags, asterisks and the white
space around it, which a policy that was trained to think writes and the evaluated models do not.
"""

import re

from activeo3.answer_parsing import LETTERS, NUMBERS, Reading, said

_LISTED = re.compile(r"\b[A-Z]\.\s++([^\n]*+)")
_PUNCTUATION = re.compile(r"[^\w\s]")


def mme_script(text: str, finished: bool = True) -> Reading:
    """ "yes", or else "no", if the first four letters have it; so "Not sure" is a no, and late answers are none.

    >>> mme_script("Yes, a dog").value, mme_script("Not sure").value, mme_script("The answer is yes").error
    ('yes', 'no', 'no_yes_or_no')
    """
    beginning = said(text).lower()[:4]
    found = next((word for word in ("yes", "no") if word in beginning), None)
    return Reading(found, None if found else "unfinished" if not finished else "no_yes_or_no" if beginning else "empty")


def lmms_eval_word(text: str, question: str, finished: bool = True) -> Reading:
    """An answer in lower case, as it must equal the right one in lower case.

    A number word that stands alone becomes a digit, punctuation goes, and the words of an option that the question lists
    ("A. left") become its letter, wherever they stand; the first ones count.

    >>> lmms_eval_word("Two", "How many?").value, lmms_eval_word("It is left.", "Where?\\nA. left\\nB. right").value
    ('2', 'a')
    """
    words = said(text)
    words = str(NUMBERS.index(words.lower())) if words.lower() in NUMBERS else words
    words = _PUNCTUATION.sub("", words).strip()
    letters = {option.strip(): letter for letter, option in zip(LETTERS, _LISTED.findall(question))}
    named = [option for option in letters if option in words]
    words = (letters[min(named, key=words.find)] if named else words).lower()
    return Reading(words) if words else Reading(None, "empty" if finished else "unfinished")
