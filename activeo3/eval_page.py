"""The page of an evaluation, and what the end of a training run adds to the page of the run.

Its headline compares, by the main metric of the table, the start policy, the trained ones and the ceiling. Its gallery
has held-out questions of every kind: fixed by the training, broken by it, still wrong, right before and after.
"""

from pathlib import Path
from typing import Any, Callable, Sequence

from PIL import Image

from activeo3 import eval_glossary, html_report, outputs
from activeo3.eval_core import Row
from activeo3.eval_output import Finished, label, say_tables, tables, write_records, write_results
from activeo3.html_report import KINDS, Bar, Page, Table, kind_of
from activeo3.intervals import Metric, value_of
from activeo3.plots import Panel, draw
from activeo3.samples import Card, Sample, save_samples
from activeo3.types import Example

SHOWN = {"fixed": 4, "broken": 3, "still wrong": 3, "right before and after": 2, "": 12}
"""How many questions of a kind a page shows."""
SHOWN_ROWS, JUDGED = 4, 100
"""Of how many rows, and how many questions are looked at for that."""
PICTURE = 520  # pixels of the longer side of a picture in the gallery
MAIN_METHODS = ("active", "default", "answer")

Load = Callable[[Example], Example] | None


# ---------------------------------------------------------------------- the headline


def headline(one: Finished) -> list[Bar]:
    """Untrained, every trained policy, and the ceiling, by the benchmark's main metric; [] where there is none."""
    measure = one.benchmark.main_metric
    rows = [row for row in one.main if not row.setting.blind and isinstance(row.metrics.get(measure), Metric)]
    rows = [row for row in rows if row.setting.task_model == rows[-1].setting.task_model or row.setting.policy]
    trained = [row for row in rows if row.setting.policy not in ("", "start") and not _is_ceiling(row)]
    methods = [row.setting.method for row in trained]
    method = next((name for name in MAIN_METHODS if name in methods), methods[0] if methods else "")
    best = list({row.setting.policy: row for row in trained if row.setting.method == method}.values())
    start = [row for row in rows if row.setting.policy == "start" and row.setting.method in (method, "cot")]
    ceilings = [
        row for row in rows if _is_ceiling(row) and row.setting.policy in ("", *(row.setting.policy for row in best))
    ]
    named = [("untrained", row) for row in start[:1]] + [(row.setting.policy, row) for row in best]
    named += [("ceiling", row) for row in ceilings[-1:]]
    return [Bar(name, eval_glossary.meaning(row.setting.method), *row.metrics[measure]) for name, row in named]


def _is_ceiling(row: Row) -> bool:
    return row.setting.method.startswith("oracle")


# ---------------------------------------------------------------------- the gallery


def gallery(one: Finished, examples: Sequence[Example], load: Load) -> tuple[list[list[Sample]], dict[str, int]]:
    """Answers of several rows to the same questions, a few of every kind, and how many of each kind there are.

    The rows are those in which a policy is asked; the questions the first that all of them have. The first of a
    question's answers is that of the start policy, if it has one.
    """
    rows = sorted([row for row in one.main if one.benchmark.shown(row)], key=lambda row: row.setting.policy != "start")
    rows = rows[:SHOWN_ROWS]
    records = [{record["id"]: record for record in row.records} for row in rows]
    common = [example for example in examples if all(example.id in of_row for of_row in records)] if rows else []
    shown: dict[str, list[list[Sample]]] = {kind: [] for kind in (*KINDS, "")}
    counts = dict.fromkeys(KINDS, 0)
    for example in common[:JUDGED]:
        whole = load(example) if load else example
        pairs = zip(rows, records)
        found = [one.benchmark.sample(whole, of_row[example.id], label(row, one.rows)) for row, of_row in pairs]
        answers = [sample for sample in found if sample]
        kind = kind_of([sample.right for sample in answers])
        counts |= {kind: counts[kind] + 1} if kind else {}
        if answers:
            shown[kind].append(answers)
    few = [answers for kind, of_kind in shown.items() for answers in of_kind[: SHOWN[kind]]]
    more = [answers for kind, of_kind in shown.items() for answers in of_kind[SHOWN[kind] :]]
    return [*few, *more[: max(0, SHOWN[""] - len(few))]], counts


def drawn(pairs: Sequence[Sequence[Sample]]) -> list[list[Card]]:
    """The answers of a gallery with their pictures."""
    return [[sample.card(max_side=PICTURE) for sample in pair] for pair in pairs]


# ---------------------------------------------------------------------- pages


def results(one: Finished) -> dict[str, Any]:
    """The headline and the table of a page, as fields of ``Page``."""
    first = tables(one)[0]
    names = [*(str(row["method"]) for row in first.cells), *first.columns]
    meanings = {name: words for name in names if (words := eval_glossary.meaning(name))}
    apart = [name for name in MAIN_METHODS if any(row.setting.method == name for row in one.main)]
    measure = one.benchmark.main_metric
    return {
        "headline": headline(one),
        "measure": f"{measure}: {eval_glossary.meaning(measure)}; {first.title}; the thin line is the 95 % interval",
        "table": Table(first.cells, first.columns, meanings, apart, first.title),
    }


def write_report(path: Path, one: Finished, examples: Sequence[Example], load: Load, summary: Sequence[str]) -> None:
    """The page of a benchmark, with its picture of budgets beside it."""
    curve = curve_of(one)
    if curve:
        outputs.leave_picture(path.with_name(f"budgets-{one.benchmark.name}.png"), curve)
    pairs, counts = gallery(one, examples, load)
    title = f"activeo3: {one.benchmark.name}"
    page = Page(title, summary, pairs=drawn(pairs), counts=counts, curve=curve, **results(one))
    html_report.write_page(path, page)


def end_run_page(folder: Path, one: Finished, examples: Sequence[Example], lost: str) -> None:
    """Add headline, table and gallery to the page of a run in ``folder``, which is over."""
    pairs, counts = gallery(one, examples, None)
    save_samples(folder, "held-out", [], [card for pair in drawn(pairs) for card in pair])
    facts = html_report.read_facts(folder)
    summary = [*facts.get("summary", ()), *([lost] if lost and lost not in facts.get("summary", ()) else ())]
    html_report.leave_facts(folder, counts=counts, summary=summary, **results(one))
    html_report.write_run_page(folder)


def curve_of(one: Finished) -> Image.Image | None:
    """Success over cost, if there are several budgets: of every method, over the budget and over the tokens written."""
    if len(one.rows) == len(one.main):
        return None
    lines: dict[str, list[Row]] = {}
    for row in one.rows:
        lines.setdefault(label(row, one.rows), []).append(row)
    panels = []
    for value, over in (
        (one.benchmark.columns[0], "budget"),
        ("region_recall", "budget"),
        (one.benchmark.columns[0], "tokens"),
    ):
        points = {
            name: [(float(row.setting.regions if over == "budget" else value_of(row.metrics[over])), row.metrics[value])
                   for row in rows if value in row.metrics and (over == "budget" or over in row.metrics)]
            for name, rows in lines.items()
        }  # fmt: skip
        if any(points.values()):
            panels.append(Panel(value, "regions allowed" if over == "budget" else "tokens per image", points))
    return draw(panels, f"{one.benchmark.name}, {one.rows[0].n} questions")


def write(
    folder: Path,
    finished: Sequence[Finished],
    examples: Sequence[Example],
    load: Callable[[Example], Example] | None,
    checkpoints: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """The tables of all benchmarks so far; the tables, files and page of the newest one, whose ``examples`` these
    are."""
    one = finished[-1]
    name = one.benchmark.name
    write_results(folder, finished)
    told = write_records(folder, one, examples)
    say_tables(one, say)
    if told:
        say(told)
    summary = [*(f"checkpoint: {source}" for source in checkpoints), f"data: {name} ({one.split})"]
    write_report(folder / f"{name}.html", one, examples, load, summary)
    say(f"\nnumbers: {folder / 'results.json'}; images: {folder / f'{name}.html'}; records of every row beside them")
