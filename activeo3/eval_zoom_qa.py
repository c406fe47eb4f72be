"""The tables of episodes: how policies do on questions in words, answer and way apart.

A right answer alone does not say that a policy looked. So a row, a policy in one of the modes of modes.py, also says
how it came about. Means over questions, with 95 % intervals over pictures (all of them in results.json):

    answer      how right the answer is, by the kind of question (evidence.rightness), 0 to 1
    reward      what the episode is worth (evidence.py)
    zoomed      share of episodes with an executed zoom; ``zooms`` executed and ``asked`` for, per episode
    tokens      what the policy wrote, per episode
    grounded_right, grounded_wrong, ungrounded_right, ungrounded_wrong
                shares of the questions whose evidence is known. Grounded: at least GROUNDED of the area of the
                evidence lies in the executed zooms together; right: the answer is worth at least RIGHT

The second table counts the turns by what they came to (zooms.STATUSES).

ViEBench (arXiv 2601.11633), which crosses answer and grounding as well, also calls a zoom grounded that lies inside the
evidence, however little of it it shows. Here the evidence must have been seen.
"""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from activeo3 import intervals, log, outputs
from activeo3.data_loader import Whole, as_it_is, readable
from activeo3.data_set import Dataset
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import Record, Runner
from activeo3.eval_output import LENIENT_ONLY, STRICT, markdown
from activeo3.eval_parsing import parser_of
from activeo3.geometry import as_boxes
from activeo3.model import VisionLanguageModel
from activeo3.modes import Way, ways
from activeo3.rollout import sample_rollouts
from activeo3.task_zoom_qa import asked_of, covered
from activeo3.tasks import Task, task_of
from activeo3.types import Example, Reward, Rollout
from activeo3.zoom_calls import STATUSES

GROUNDED = 0.5
RIGHT = 0.5
MODES = ("baseline", "default")
"""The modes of an exam that names none: does it help to zoom?"""
QUADRANTS = ("grounded_right", "grounded_wrong", "ungrounded_right", "ungrounded_wrong")
COLUMNS = ("answer", "reward", "zoomed", "zooms", "asked", "tokens", *QUADRANTS)
OF_READERS = (f"answer{STRICT}", LENIENT_ONLY)
"""Columns beside them where some policy is read leniently: answers of the episodes that the strict reader could read as well
(it would have ended the others, or told the policy why not), and the share of the others."""


def exam(
    policies: Mapping[str, VisionLanguageModel],
    examples: Sequence[Example],
    task: Task,
    runner: Runner,
    modes: Sequence[str] = MODES,
    black: bool = False,
    resamples: int = 1000,
    say: Callable[[str], None] = print,
    whole: Whole = as_it_is,
) -> list[dict[str, Any]]:
    """The rows of every policy, by its title, in every mode: one greedy episode about every example.

    ``black`` adds the control of modes.py. A row has ``policy``, ``mode``, ``n``,
    ``parser``, the value and the ``intervals`` of all COLUMNS and OF_READERS (NaN where there is nothing to measure), the
    number of turns by their ``statuses``, ``categories`` where the questions have some, and its ``episodes``, a Record each.
    ``whole`` gives an example its picture when its turn comes, if that was put aside (Dataset.without_images).

    Raises DataError for an example that asks nothing.
    """
    known = [example for example in examples if len(asked_of(example).evidence_px)]
    rows = []
    for title, policy in policies.items():
        for way in ways(task, modes, black):
            asked = known if way.told else examples
            if asked:
                row = _row(title, way, asked, sit(policy, way, asked, runner, whole), resamples)
                rows.append(row | {"parser": parser_of(task.config, [policy])})
                say(f"{title}, {way.title}: {rows[-1]['answer']:.3f} of {len(asked)} answers right")
    return rows


def sit(
    policy: VisionLanguageModel,
    way: Way,
    examples: Sequence[Example],
    runner: Runner,
    whole: Whole = as_it_is,
) -> list[Record]:
    """One greedy episode per example, as results.json has it."""

    def work(block: Sequence[Example]) -> list[Record]:
        block = [whole(example) for example in block]
        _, groups = sample_rollouts(policy, way.task, block)
        told = [rollout for (rollout,) in groups]
        outcomes = way.task.act(policy, told)
        return [_record(one, way.task.reward(one, outcome)) for one, outcome in zip(told, outcomes)]

    return runner.map(work, examples, ("episode", way.title, policy, way.task.config, sorted(way.task.weights.items())))


def _record(rollout: Rollout, score: Reward) -> Record:
    asked, episode = asked_of(rollout.example), rollout.episode
    zooms = [{"status": zoom.status, "window_px": zoom.window_px and list(zoom.window_px)} for zoom in episode.zooms]
    seen = covered(as_boxes(episode.looked_at), asked.evidence_px) if len(asked.evidence_px) else None
    return {
        "id": rollout.example.id, "question": asked.question, "answers": list(asked.answers), "answer": episode.answer,
        "right": score.terms["answer"], "evidence_seen": seen, "zooms": zooms, "statuses": list(episode.statuses),
        LENIENT_ONLY: rollout.action.strict is not None, "tokens": len(rollout.token_ids), "reward": score.total, "terms": dict(score.terms), "text": rollout.text,
    }  # fmt: skip


def _row(
    title: str, way: Way, examples: Sequence[Example], records: Sequence[Record], resamples: int
) -> dict[str, Any]:
    pictures = [example.image_id for example in examples]
    values = [_values(record, way.told) for record in records]
    names = (*COLUMNS, *OF_READERS)
    means = {name: intervals.bootstrap_interval([one[name] for one in values], pictures, resamples) for name in names}
    turns = Counter(chain(*(record["statuses"] for record in records)))
    row = {"policy": title, "mode": way.title, "n": len(examples)} | {name: mean.value for name, mean in means.items()}
    row |= {"intervals": {name: [mean.low, mean.high] for name, mean in means.items()}}
    row |= {"statuses": {name: turns[name] for name in STATUSES}, "episodes": list(records)}
    kinds = [example.vqa.category if example.vqa else "" for example in examples]
    if any(kinds):
        of_kinds = {kind: [r["right"] for r, own in zip(records, kinds) if own == kind] for kind in sorted(set(kinds))}
        row["categories"] = {
            kind: {"n": len(rights), "answer": sum(rights) / len(rights)} for kind, rights in of_kinds.items()
        }
    return row


def _values(record: Record, told: bool) -> dict[str, float]:
    """COLUMNS of one episode; who was told where to look is neither grounded nor not."""
    zooms = sum(zoom["status"] == "zoom_executed" for zoom in record["zooms"])
    values = {"answer": record["right"], "reward": record["reward"], "zoomed": float(zooms > 0), "zooms": zooms}
    values |= {"asked": len(record["zooms"]), "tokens": record["tokens"], LENIENT_ONLY: float(record[LENIENT_ONLY])}
    values |= {f"answer{STRICT}": 0.0 if record[LENIENT_ONLY] else record["right"]}
    seen = None if told else record["evidence_seen"]
    if seen is None:
        return values | dict.fromkeys(QUADRANTS, float("nan"))
    grounded, right = seen >= GROUNDED, record["right"] >= RIGHT
    own = f"{'grounded' if grounded else 'ungrounded'}_{'right' if right else 'wrong'}"
    return values | {name: float(name == own) for name in QUADRANTS}


# ---------------------------------------------------------------------- what is left behind


def tables(rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[dict[str, Any]], list[str]]]:
    """The two tables of ``exam``'s rows, each (cells, columns) as report.table wants them."""
    first, second = [], []
    for row in rows:
        name = {key: row[key] for key in ("policy", "mode", "n")}
        answer = (row["answer"], *row["intervals"]["answer"])
        first.append(name | {column: row[column] for column in (*COLUMNS, *OF_READERS)} | {"answer": answer})
        second.append(name | {"turns": sum(row["statuses"].values())} | row["statuses"])
    seen = [status for status in STATUSES if any(row[status] for row in second)]
    kinder = OF_READERS if any(row["parser"] == "lenient" for row in rows) else ()
    return [(first, ["policy", "mode", "n", *COLUMNS, *kinder]), (second, ["policy", "mode", "turns", *seen])]


def passes(config: EvalConfig, policies: int) -> int:
    """How often ``evaluate`` works on every question, if all have evidence to show."""
    return policies * len(ways(task_of(config), config.mode or MODES, config.black))


def evaluate(
    opened: Mapping[str, Dataset],
    sources: Mapping[str, str],
    load: Callable[[str], VisionLanguageModel],
    task_models: Mapping[str, Any],
    config: EvalConfig,
    folder: Path,
    runner: Runner,
) -> None:
    """Every benchmark: all policies, given by title and source, in all modes, by the default reward; nobody but
    they looks at crops, not ``task_models``.

    ``load(source)`` gives a policy; they are loaded one after the other. Leaves results.json and results.md.
    """
    task, found, texts = task_of(config), [], []
    for name, dataset in opened.items():
        examples, rows = readable(dataset.without_images(), folder, runner.ranks.all_gather, runner.writes), []
        if "oracle_crop" in config.mode:
            known = sum(len(asked_of(example).evidence_px) > 0 for example in examples)
            runner.say(f"{name}: {known} of {len(examples)} questions have evidence to show")
        for title, source in sources.items():
            modes = config.mode or MODES
            policy = {title: load(source)}
            rows += exam(
                policy,
                examples,
                task,
                runner,
                modes,
                config.black,
                config.resamples,
                runner.say,
                dataset.with_image,
            )
        found += [{"benchmark": name} | row for row in rows]
        titles = (f"{name} ({dataset.split}), {len(examples)} questions", f"{name}, what the turns came to")
        texts += [log.table(*table, title) for table, title in zip(tables(rows), titles)]
        if not runner.writes:
            continue
        runner.say("\n\n".join(texts[-2:]))
        outputs.leave(folder / "results.json", (log.strict_json({"rows": found}) + "\n").encode())
        outputs.leave(folder / "results.md", (markdown(texts) + "\n").encode())
    runner.say(f"numbers and every episode: {folder / 'results.json'}")
