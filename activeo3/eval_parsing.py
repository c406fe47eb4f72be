"""What a table says of the two readers of answers: how many answers only the lenient one could read, and what it is without them.

    <metric>_strict      the metric, had only the strict reader been there
    lenient_only         share of the policy's answers that only the lenient reader could read (all of)
    crops_lenient_only   the same of the task model's answers about crops

The columns are shown in every row of a table in which some model is read leniently, also in those of the others, so that rows
can be compared by either reading (results.first_table). What the strict reader would have left needs no further work of a model:
where it finds no region, nothing is looked at.
"""

from dataclasses import replace
from typing import Any, Iterable, Mapping, Sequence

from activeo3.config import Config
from activeo3.eval_output import CROPS_LENIENT_ONLY, LENIENT_ONLY, STRICT
from activeo3.model import VisionLanguageModel, trained_here
from activeo3.task_models import merge_crops
from activeo3.types import Rollout, TaskResult


def parser_of(config: Config, models: Iterable[Any]) -> str:
    """How the row of these models is read: leniently if the answers of any are; task models of another kind have none."""
    spoken = [model for model in models if isinstance(model, VisionLanguageModel)]
    lenient = any(config.decided(model.trained_here).parser == "lenient" for model in spoken)
    return "lenient" if lenient else "strict"


def announced(config: Config, sources: Iterable[str]) -> str:
    """How the answers of the models of these folders or hub ids are read, and why, in a line."""
    if config.parser in ("strict", "lenient"):
        return f"answers are read by the {config.parser} reader (--parser)"
    kinds: dict[bool, list[str]] = {}
    for source in dict.fromkeys(sources):
        kinds.setdefault(trained_here(source), []).append(source)
    told = {
        True: "the strict reader: trained here",
        False: "the lenient reader: not trained here, no activeo3.json (--parser)",
    }
    return "\n".join(f"answers of {', '.join(of_kind)} are read by {told[ours]}" for ours, of_kind in kinds.items())


def strictly_read(rollout: Rollout) -> Rollout:
    """The answer, had only the strict reader been there: it had no region where only the lenient one found some."""
    strict = rollout.action.strict
    if strict is None:
        return rollout
    return replace(
        rollout, action=strict, regions=(), result=rollout.result and (rollout.result.strict or rollout.result)
    )


def strictly_found(rollouts: Sequence[Rollout], outcomes: Sequence[TaskResult], merge: str) -> list[TaskResult]:
    """What the task model would have found, had only the strict reader been there, for policy and task model."""
    pairs = zip(rollouts, outcomes, strict=True)
    return [
        merge_crops([], merge) if rollout.action.strict else outcome.strict or outcome for rollout, outcome in pairs
    ]


def strict_columns(metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """These metrics, measured of what was strictly read or found, under the names of their columns."""
    return {f"{name}{STRICT}": metrics[name] for name in names}


def shares(rollouts: Sequence[Rollout], outcomes: Sequence[TaskResult] = ()) -> dict[str, float]:
    """lenient_only of answers and, where there are any, of what was said about crops."""
    found = {LENIENT_ONLY: sum(rollout.action.strict is not None for rollout in rollouts) / len(rollouts)}
    calls = sum(outcome.calls for outcome in outcomes)
    return found | ({CROPS_LENIENT_ONLY: sum(outcome.lenient_only for outcome in outcomes) / calls} if calls else {})
