"""What the rows and columns of a table are, in words, for the console and the page."""

import re

_ROWS = """
direct              no zoom: the task model sees the whole image, squeezed to a square
direct-native       no zoom: the whole image at its own size and shape
random              regions drawn at random
grid                uniform tiles that cover the image
fixed               the best regions that ignore the image, fitted on training images
cot                 regions of the start policy: prompted, not trained
active              regions of the trained policy
repeat              the trained policy, asked for one region several times
answer              the policy itself answers, on the whole image
oracle-regions      regions cut around the true boxes: the ceiling of any policy
baseline            the question without a zoom
default             the policy zooms as often as it wants
strict_zoom         the policy must zoom before it answers
oracle_crop         the true place alone is shown: a ceiling
oracle_crop+picture the true place is shown beside the whole image: a ceiling
"""
_COLUMNS = r"""
method              the way of choosing where to look: see the rows
policy              start: before training; else the checkpoint
task_model          the frozen model that works on the crops
budget              how many regions an answer may propose
blind               yes: the control in which the crops are black
AP                  COCO's average precision, mean over IoU 0.50 to 0.95
AP(\d\d)            average precision at IoU \1 %
AP_([sml])          AP of small (s), medium (m) or large (l) objects
AR                  COCO's average recall, mean over IoU 0.50 to 0.95
AR(\d\d)            average recall at IoU \1 %
AR_([sml])          AR of small (s), medium (m) or large (l) objects
A[PR]10\w*          the same at the single IoU threshold 0.1
A[PR]\w*_whole      the same, with tiles merged back into whole images
AP_([rcf])          AP of rare (r), common (c) or frequent (f) categories
region_recall       share of true boxes of which a region holds 90 %
swap_picture        what region_recall loses with another image's regions
swap_query          what region_recall loses with another query's regions
regions             regions that were looked at, per image
calls               crops that the task model worked on, per image
seconds             time per image
tokens              tokens that were written, per image
sensing_recall      share of true boxes that some region holds
recall_inside       of those, the share that the task model found
recall              share of all true boxes that were found at IoU 0.5
precision           share of detections that are right at IoU 0.5
TP                  detections that found a true box
FP                  detections that did not
FN                  true boxes that were not found
missed              true boxes that nothing came near
mIoU@(\d+)          mean IoU of the mask after \1 zooms
mIoU                mean IoU of the box
gain                mean IoU that the zooms added
covered             share of the mask's errors inside the regions
Acc(\d+)            share of boxes with IoU of at least \1 %
Avg                 mean of the accuracies
exact               share of counts that are exactly right
MAE                 mean absolute error of the counts
form                share of answers of the form that was asked for
accuracy            share of right answers
accuracy_lenient    the same, read by a more lenient rule
accuracy_plus       share of images with both questions right
perception          MME's points for perception
cognition           MME's points for reasoning
total               MME's points in all
circular            share of questions that are right in every rotation
unread              share of answers that cannot be read
answer              share of right answers
reward              reward of an episode
zoomed              share of episodes with a zoom
zooms               zooms that were shown, per episode
asked               zooms that were asked for, per episode
grounded_right      right, and a zoom showed the evidence
grounded_wrong      wrong, though a zoom showed the evidence
ungrounded_right    right without having seen the evidence
ungrounded_wrong    wrong, and the evidence was not seen
\w+_strict          the same, had only the strict reader been there
lenient_only        share of answers that only the lenient reader could read
edit_distance       edit distance to the true text, as a share of its length
bleu                BLEU of the text
meteor              METEOR of the text
f1                  F1 of the words
f_measure           F1 of the words
"""


def _read(text: str) -> dict[str, str]:
    return dict(line.split(None, 1) for line in text.strip().splitlines())


ROWS, COLUMNS = _read(_ROWS), _read(_COLUMNS)


def meaning(name: str) -> str:
    """What a row or column is; "" if it is not known.

    >>> meaning("AP50"), meaning("cot"), meaning("vstar_colour")
    ('average precision at IoU 50 %', 'regions of the start policy: prompted, not trained', '')
    """
    if words := ROWS.get(name) or COLUMNS.get(name):
        return words
    found = ((re.fullmatch(pattern, name), words) for pattern, words in COLUMNS.items())
    return next((match.expand(words) for match, words in found if match), "")
