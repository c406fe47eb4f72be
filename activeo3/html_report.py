"""One self-contained HTML page about a training run or an evaluation, filled into ``html_report.html``.

    python -m activeo3.html_report runs/tiny      # the page anew, from what lies in the folder of a run

Its order: what came of it, as bars with intervals; the same held-out questions over the steps; one group of answers;
charts; held-out questions before and after; the table; what the numbers mean. A part without content is left out. The
page of a run comes from files alone: ``report.json`` (``leave_facts``), ``metrics.jsonl`` and ``samples/``.

No script, no external resource; it follows the reader's light or dark mode. Whatever comes from data or a model is made
printable and escaped by the template; a content policy in the page's head forbids scripts and the network besides.
"""

import base64
import functools
import io
import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from PIL import Image

from activeo3 import outputs, processes, samples, terminal
from activeo3.charts import Row, charts, series
from activeo3.cli import ConfigError, OneLine
from activeo3.drawing import LACKING, REGION, SURPLUS, TRUE
from activeo3.log import MISSING, figure, is_number, read_rows, strict_json, time_left
from activeo3.monitor import METRIC_GLOSSARY
from activeo3.samples import Card
from activeo3.terminal import printable

PAGE, FACTS = "report.html", "report.json"
REFRESH = 20  # seconds after which the page of a running run is read again
MOST_STEPS = 9  # steps in the filmstrip; as many groups are kept
KINDS = ("fixed", "broken", "still wrong", "right before and after")


class Bar(NamedTuple):
    """One bar of the headline: its name, what it means, its value, and the interval around it."""

    name: str
    meaning: str
    value: float
    low: float
    high: float


class Table(NamedTuple):
    """A table of the page: ``rows`` and ``columns`` as in log.table; what a name means, and whose rows stand out."""

    rows: Sequence[Row]
    columns: Sequence[str]
    meanings: Mapping[str, str] = {}
    apart: Sequence[str] = ()
    title: str = "Results"


@dataclass(frozen=True)
class Page:
    """What a page says.

    Args:
        summary: lines; in one like ``data: scenes`` the name stands out.
        status: how far the run is, in words; ``live``: it goes on, so the page reads itself again.
        rows: those of ``metrics.jsonl``; ``ceilings`` has the largest value that a metric can have.
        headline: the bars, of the metric ``measure``.
        film: steps with the answers to the same held-out questions.
        groups: steps with all answers to one question, and what the policy saw of it.
        pairs: answers to one held-out question, by several policies; the first is the one before training.
        counts: of all held-out questions, how many are of each of KINDS.
        curve: what a budget of regions buys, as a picture; ``images``: of the user's.
    """

    title: str
    summary: Sequence[str] = ()
    status: str = ""
    live: bool = False
    rows: Sequence[Row] = ()
    ceilings: Mapping[str, float] = field(default_factory=dict)
    measure: str = ""
    headline: Sequence[Bar] = ()
    film: Sequence[tuple[int, Sequence[Card]]] = ()
    groups: Sequence[tuple[int, Sequence[Card], bytes]] = ()
    pairs: Sequence[Sequence[Card]] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    table: Table | None = None
    curve: Image.Image | None = None
    images: Sequence[Image.Image] = ()


# ---------------------------------------------------------------------- the page of a run, from its folder


def leave_facts(folder: Path, **facts: Any) -> None:
    """Write, or add to, what the page of a run says beside its metrics and samples: fields of ``Page``, and ``steps``,
    how many the run shall have."""
    outputs.leave(folder / FACTS, (strict_json(read_facts(folder) | facts) + "\n").encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``leave_facts`` has left; {} if there is nothing. Raises ConfigError for a file that is no JSON object."""
    path = folder / FACTS
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        raise ConfigError(f"{path} is damaged: delete it, and the page is made without it.") from None


def write_run_page(folder: Path, live: bool = False, ended: str = "") -> Path:
    """The page of a run from what lies in its ``folder``; ``ended`` says how it ended before its last step. Returns the
    page's path."""
    facts, path = read_facts(folder), folder / "metrics.jsonl"
    rows = [row for row in read_rows(path) if isinstance(row, dict)] if path.is_file() else []
    taken = _spread(samples.steps_of(folder))
    steps = [(step, samples.read_cards(place, "held-out")) for step, place in taken]
    groups = [(step, samples.read_cards(place, "samples"), _bytes(place / "view.jpg")) for step, place in taken]
    table = Table(*facts["table"]) if facts.get("table") else None
    page = Page(
        title=facts.get("title", f"activeo3: {folder.name}"),
        summary=facts.get("summary", ()),
        status=_status(rows, facts.get("steps", 0), live, bool(table), ended),
        live=live,
        rows=rows,
        ceilings=facts.get("ceilings", {}),
        measure=facts.get("measure", ""),
        headline=[Bar(*bar) for bar in facts.get("headline", ())],
        film=[(step, cards) for step, cards in steps if cards],
        groups=[one for one in groups if one[1]],
        pairs=_pairs(samples.read_cards(folder / "samples" / "held-out", "held-out")),
        counts=facts.get("counts", {}),
        table=table,
    )
    return write_page(folder / PAGE, page)


def _status(rows: Sequence[Row], steps: int, live: bool, done: bool, ended: str) -> str:
    """How far a run is, in words."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    step = int(rows[-1].get("step", 0)) if rows else 0
    if live and steps and step >= steps:
        return f"all {steps} steps are done, the table is being measured; written {now}"
    if live:
        left = time_left(rows, steps)
        return f"step {step} of {steps}{', ' + left if left else ''}; written {now}"
    if done or step and step >= steps:
        return f"finished: {step} steps; written {now}"
    by = f" by {ended}" if ended else ""
    return f"stopped{by} at step {step} of {steps or '?'}; the same command goes on; written {now}"


def _spread(items: Sequence[Any]) -> list[Any]:
    """At most MOST_STEPS of the items, evenly spaced, the first and the last among them."""
    if len(items) <= MOST_STEPS:
        return list(items)
    return [items[round(place * (len(items) - 1) / (MOST_STEPS - 1))] for place in range(MOST_STEPS)]


def _pairs(cards: Sequence[Card]) -> list[list[Card]]:
    """Cards in a row about the same question, together."""
    pairs: list[list[Card]] = []
    for card in cards:
        if pairs and pairs[-1][0].line.get("id") == card.line.get("id"):
            pairs[-1].append(card)
        else:
            pairs.append([card])
    return pairs


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else b""


def is_live(page: bytes) -> bool:
    """Whether a page reads itself again, so that its run goes on, or was killed."""
    return b'<meta http-equiv="refresh"' in page[:2000]


# ---------------------------------------------------------------------- any page


def write_page(path: Path | str, page: Page) -> Path:
    """Write a page, replacing an older one only when it is complete. Returns its path."""
    path = Path(path)
    halves = [line.partition(": ") for line in page.summary]
    parts = {
        "page": page,
        "refresh": REFRESH if page.live else 0,
        "summary": [(name if colon else "", rest if colon else name) for name, colon, rest in halves],
        "tiles": _tiles(page.rows),
        "bars": _bars(page.headline),
        "film": _film(page.film),
        "groups": [_group(*one, newest=one is page.groups[-1]) for one in reversed(page.groups)],
        "legend": _legend(page),
        "charts": charts(page.rows, page.ceilings),
        "gallery": _gallery(page),
        "results": page.table and _table(page.table),
        "curve": page.curve and _embedded(samples.jpeg(page.curve, 85)),
        "images": [_embedded(samples.jpeg(image, 85)) for image in page.images],
        "glossary": _logged(page.rows),
    }
    outputs.leave(path, _template().render(parts).encode("utf-8", "replace"))
    return path


def write_picture_page(
    path: Path | str,
    title: str,
    summary_lines: Sequence[str],
    images: Sequence[Image.Image],
    rows: Sequence[Row],
    columns: Sequence[str],
) -> Path:
    """Write a page about one picture to ``path``: a summary, ``images`` of it, and a table of words. Returns the
    path."""
    table = Table(rows, columns, title="Answers")
    return write_page(path, Page(title, summary_lines, images=images, table=table))


@functools.cache
def _template() -> Any:
    """The page's template: text of any origin is shown, without a tag, a quote, or a mark that turns its direction."""
    import jinja2

    shown = lambda value: printable(value) if type(value) is str else value  # noqa: E731
    options = dict(autoescape=True, finalize=shown, undefined=jinja2.ChainableUndefined, keep_trailing_newline=True)
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return jinja2.Environment(**options).from_string(text)


def _tiles(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(name, value, unit) of the time it took."""
    seconds = series(rows, "time/step")[1]
    if not len(seconds):
        return []
    total = seconds.sum()
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if total >= size or size == 1)
    name = f"{len(seconds)} steps, {seconds.mean():.1f} s each"
    return [(name, f"{total / size:.{0 if total >= 10 * size else 1}f}", unit)]


def _bars(headline: Sequence[Bar]) -> list[dict[str, Any]]:
    """The bars as shares of the longest one, or of 1."""
    numbers = [[part if is_number(part) and part is not None else 0.0 for part in bar[2:]] for bar in headline]
    longest = max((max(part) for part in numbers), default=1.0)
    longest = max(longest, 1.0) if longest <= 1.0 else longest
    places = [[f"{100 * min(1.0, max(0.0, part / longest)):.1f}" for part in of_one] for of_one in numbers]
    keys = ("value", "low", "high")
    return [
        {"name": bar.name, "meaning": bar.meaning, **dict(zip(keys, place))}
        | dict(zip(("shown", "interval"), _halves(figure(tuple(bar[2:])))))
        for bar, place in zip(headline, places)
    ]


def _film(film: Sequence[tuple[int, Sequence[Card]]]) -> dict[str, Any]:
    """The filmstrip: steps as columns, held-out questions as rows."""
    ids = list(dict.fromkeys((card.line.get("id"), card.line.get("query")) for _, cards in film for card in cards))
    by_step = [{card.line.get("id"): _shown(card, "small") for card in cards} for _, cards in film]
    lines = [{"query": query, "cells": [cards.get(key) for cards in by_step]} for key, query in ids]
    return {"steps": [step for step, _ in film], "rows": lines} if len(film) > 1 or lines else {}


def _group(step: int, cards: Sequence[Card], view: bytes, newest: bool) -> dict[str, Any]:
    """One group, the best answer first; older ones without their crops."""
    known = lambda value: value if is_number(value) and value is not None else float("-inf")  # noqa: E731
    ranked = sorted(cards, key=lambda card: -known(card.line.get("reward")))
    advantages = [abs(card.line.get("advantage") or 0.0) for card in cards]
    widest = max([1e-6, *advantages])
    shown = [_shown(card, "small", *(("crops",) if newest else ())) for card in ranked]
    for one, card in zip(shown, ranked):
        share = (card.line.get("advantage") or 0.0) / widest
        one |= {"left": f"{50 + 50 * min(0.0, share):.1f}", "width": f"{50 * abs(share):.1f}", "up": share > 0}
    return {"step": step, "query": cards[0].line.get("query"), "cards": shown, "view": _embedded(view), "open": newest}


def _gallery(page: Page) -> list[dict[str, Any]]:
    """The held-out questions by kind, as far as there is anything of a kind."""
    sorted_pairs: dict[str, list[Any]] = {name: [] for name in (*KINDS, "")}
    for pair in page.pairs:
        names = ["picture", "crops"]
        shown = [
            _shown(card, *names, *(name for name in card.pictures if re.fullmatch(r"crop\d+", name))) for card in pair
        ]
        sorted_pairs[kind_of([card.line.get("right") for card in pair])].append(shown)
    of_all = sum(page.counts.values())
    parts = {name: pairs for name, pairs in sorted_pairs.items() if pairs or page.counts.get(name)}
    return [
        {"kind": name, "pairs": pairs, "count": page.counts.get(name, len(pairs)), "of": of_all}
        | {"open": name != KINDS[-1] or len(parts) == 1}
        for name, pairs in parts.items()
    ]


def kind_of(right: Sequence[bool | None]) -> str:
    """Which of KINDS the answers to a question are, from those before training to those after; "" if not known.

    >>> kind_of([False, True]), kind_of([True, False]), kind_of([False, False]), kind_of([True, True]), kind_of([None])
    ('fixed', 'broken', 'still wrong', 'right before and after', '')
    """
    if len(right) < 2 or right[0] is None or right[-1] is None:
        return ""
    kinds = {(False, True): KINDS[0], (True, False): KINDS[1], (False, False): KINDS[2], (True, True): KINDS[3]}
    return kinds[bool(right[0]), bool(right[-1])]


def _shown(card: Card, *names: str) -> dict[str, Any]:
    """One answer for the template: its words, and those of its pictures that are named."""
    line = card.line
    terms = []
    for name, term in dict(line.get("terms") or {}).items():
        number = float(term) if is_number(term) and term is not None else 0.0
        terms.append((name, f"{min(1.0, max(0.0, number)):.0%}", figure(term if term is None else float(term))))
    pictures = {name: _embedded(card.pictures[name]) for name in names if name in card.pictures}
    words = {
        name: line.get(name) for name in ("query", "id", "title", "error", "said", "truth", "right", "right_means")
    }
    turns = [
        (str(turn), [pictures.get(f"crop{number}") for number in shown]) for turn, shown in line.get("turns") or ()
    ]
    advantage = line.get("advantage")
    return (
        words
        | {
            "reward": figure(line.get("reward")),
            "advantage": f"{advantage:+.2f}" if isinstance(advantage, float) else "",
            "terms": terms,
            "text": printable(str(line.get("text", "")).strip(), limit=4000) or MISSING,
            "turns": turns,
        }
        | {name: pictures.get(name) for name in ("small", "picture", "crops")}
    )


def _legend(page: Page) -> list[tuple[tuple[int, int, int], str]]:
    """The colours of the page's pictures, and what they mean."""
    cards = [card for pair in page.pairs for card in pair]
    cards += [card for _, of_step, *_ in (*page.film, *page.groups) for card in of_step]
    regions = [(REGION, "region to zoom into")] if any(card.line.get("regions") is not None for card in cards) else []
    if any(card.line.get("said") for card in cards):
        return [(TRUE, "where the answer can be seen"), *regions]
    wrong = "too much" if any(card.line.get("mask") for card in cards) else "wrong"
    return [*regions, (TRUE, "right"), (LACKING, "missing"), (SURPLUS, wrong)]


def _table(table: Table) -> dict[str, Any]:
    """log.table for a browser: same cells, intervals apart from their values, without the columns that have none."""
    rows = [{name: tuple(cell) if isinstance(cell, list) else cell for name, cell in row.items()} for row in table.rows]
    columns = [name for name in table.columns if any(figure(row.get(name)) not in (MISSING, "") for row in rows)]
    if not columns:
        return {}
    right = {name: all(is_number(row.get(name)) for row in rows) for name in columns}

    def cell(value: Any, name: str) -> tuple[str, str, str]:
        halves = _halves(figure(value)) if isinstance(value, tuple) else (figure(value), "")
        return *halves, "right" if right[name] else "words"

    names = list(dict.fromkeys(str(row.get(columns[0])) for row in rows))
    means = [(name, table.meanings[name]) for name in dict.fromkeys([*names, *columns]) if name in table.meanings]
    lines = [([cell(row.get(name), name) for name in columns], row.get(columns[0]) in table.apart) for row in rows]
    head = [(name, right[name], table.meanings.get(name, "")) for name in columns]
    return {"title": table.title, "head": head, "rows": lines, "meanings": means}


def _halves(words: str) -> tuple[str, str]:
    """``0.41 [0.36, 0.47]`` as its value and its interval."""
    value, bracket, interval = words.partition(" [")
    return value, bracket.strip() + interval


def _logged(rows: Sequence[Row]) -> list[tuple[str, Any]]:
    """The metrics that a run has logged, with what they mean, in the order of the glossary."""
    logged = {name for row in rows for name in row}
    return [(name, metric) for name, metric in METRIC_GLOSSARY.items() if name in logged]


def _embedded(data: bytes) -> dict[str, Any] | None:
    """A JPEG inside the page itself; None for what is none."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return {"width": width, "height": height, "data": base64.b64encode(data).decode("ascii")}


def main(arguments: Sequence[str]) -> None:
    """Write the page of a run anew. Raises ConfigError for a folder that no run has left."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError("python -m activeo3.html_report RUN: name the folder of one training run, as runs/tiny.")
    folder = Path(arguments[0])
    if not (folder / "metrics.jsonl").is_file():
        raise ConfigError(f"{folder} is no folder of a training run: it has no metrics.jsonl.")
    print(write_run_page(folder, live=outputs.in_use(folder)))


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    with processes.one_sentence(OneLine):
        main(sys.argv[1:])
