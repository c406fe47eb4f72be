"""The benchmark of questions that a policy answers in an episode, in which it may zoom: answer and grounding apart.

Each mode is a row; everything else is equal:

    baseline      one look at the whole image: no zoom is shown, and the first answer counts
    default       it may zoom
    strict_zoom   it must zoom: an answer that comes before any zoom was executed is not taken
    oracle_crop   no zoom: it is shown where the evidence is and asked at once, in two rows, the crop alone
                  and (``oracle_crop+picture``) the whole image and the crop

Without zooms the prompt does not speak of them; a policy that asks for a zoom all the same is told once that none is
left, and may answer then. In the blind control all that it is shown after its zooms is black: what it answers right
there does not come from zooming.

A right answer alone does not say that a policy looked at the evidence. Means over questions, with 95 % intervals over
images:

    answer      how right the answer is, by the kind of question (task_zoom_qa.rightness), 0 to 1
    reward      the reward of the episode (task_zoom_qa.py)
    zoomed      share of episodes with an executed zoom; ``zooms`` executed and ``asked`` for, per episode
    tokens      what the policy wrote, per episode
    grounded_right, grounded_wrong, ungrounded_right, ungrounded_wrong
                shares of the questions whose evidence is known. Grounded: at least GROUNDED of the area of the
                evidence lies in the executed zooms together; right: the answer scores at least RIGHT
    turns/...   the number of turns by their status (zoom_calls.STATUSES)

ViEBench (arXiv 2601.11633), which crosses answer and grounding as well, also calls a zoom grounded that lies inside the
evidence, however little of it it shows. Here the evidence must have been seen.

Differences from Active-Perception-R1 (commit 14f2841):
  1. Its strict mode asks for a zoom alone, tries twice, and then asks again with the image and one crop. Here it
     is the episode that a policy is trained in, with an answer that fails closed (``--min_zooms``).
  2. The evidence is padded as eval_baselines.py does it, to 1.3 times its size and at least a quarter of the image's
     shorter side. There it was 0.02 of the image, and words without context were answered worse than pages.
  3. An example without evidence has no oracle row. There its row repeated the baseline.
"""

from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Any, Sequence

from activeo3 import intervals, prompts
from activeo3.config import ConfigError, TrainConfig
from activeo3.drawing import NOTHING
from activeo3.eval_baselines import greedy_rollouts, oracle_regions
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import LENIENT_ONLY, STRICT, Benchmark, Map, Method, Models, Row, Setting, blackened
from activeo3.eval_runner import Record
from activeo3.geometry import as_boxes
from activeo3.model import VisionLanguageModel
from activeo3.samples import Sample, with_evidence
from activeo3.task_models import crop_view
from activeo3.task_zoom_qa import ZoomDialogue, ZoomQA, asked_of, covered
from activeo3.tasks import PromptSpec, sensing_view
from activeo3.types import Example, Region, Reward, Rollout
from activeo3.zoom_calls import STATUSES

GROUNDED = 0.5
RIGHT = 0.5
QUADRANTS = ("grounded_right", "grounded_wrong", "ungrounded_right", "ungrounded_wrong")
ORACLES = ("oracle_crop", "oracle_crop+picture")
"""The modes in which the evidence is shown."""


class ZoomQABenchmark(Benchmark):
    """One greedy episode about every example, of every policy in every mode."""

    methods = {
        "baseline": Method(policy="every", zooms=False),
        "default": Method(policy="every"),
        "strict_zoom": Method(policy="every"),
        **dict.fromkeys(ORACLES, Method(policy="every", zooms=False)),
    }
    default_methods = ("baseline", "default")
    flag = "mode"
    in_memory = 0
    columns = ("answer", "reward", "zoomed", "zooms", "asked", "tokens", *QUADRANTS)

    def __init__(self, name: str, config: EvalConfig, rewards: TrainConfig | None = None) -> None:
        super().__init__(name, config, rewards)
        self.chosen = tuple(chain(*(ORACLES if mode == "oracle_crop" else (mode,) for mode in self.chosen)))
        if "strict_zoom" in self.chosen and min(config.max_zooms, config.max_turns - 1) < 1:
            limits = f"--max_zooms {config.max_zooms} and --max_turns {config.max_turns}"
            raise ConfigError(f"--mode strict_zoom needs a zoom and a turn to answer in, and {limits} leave none.")

    def tables(self, rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
        turns = [f"turns/{name}" for name in STATUSES]
        kinds = [name for row in rows for name in row.metrics if name.startswith(("answer/", "asked/"))]
        turned = {"what the turns came to": tuple(name for name in turns if any(row.metrics.get(name) for row in rows))}
        by_kind = {"answers and zooms by category": tuple(dict.fromkeys(kinds))} if kinds else {}
        return super().tables(rows) | turned | by_kind

    @property
    def main_budget(self) -> int:
        return self.config.max_zooms

    def budgets(self, method: str, policy: str, models: Models) -> list[int]:
        """How often an episode may zoom: --max_zooms, and --budgets for the curve."""
        return sorted({self.main_budget, *self.config.budgets}) if self.methods[method].zooms else [0]

    def can_be_blind(self, method: str) -> bool:
        return self.methods[method].zooms

    def config_of(self, setting: Setting) -> EvalConfig:
        config = self.config
        if not self.methods[setting.method].zooms:
            return replace(config, max_zooms=0, max_turns=min(2, config.max_turns), min_zooms=0)
        turns = config.max_turns if setting.regions == self.main_budget else max(config.max_turns, setting.regions + 1)
        least = max(config.min_zooms, int(setting.method == "strict_zoom"))
        return replace(config, max_zooms=setting.regions, max_turns=turns, min_zooms=least)

    def task_of(self, setting: Setting) -> ZoomQA:
        """The task as a mode asks it."""
        kind = (
            BlackCrops
            if setting.blind
            else {"oracle_crop": CropShown, "oracle_crop+picture": ImageAndCropShown}.get(setting.method, ZoomQA)
        )
        return kind(self.config_of(setting), self.rewards)

    def prepare(self, examples: Sequence[Example], models: Models) -> list[Example]:
        """Raises DataError for an example that asks nothing."""
        for example in examples:
            asked_of(example)
        return list(examples)

    def asked(self, setting: Setting, examples: Sequence[Example]) -> Sequence[Example]:
        """All examples; where the evidence is shown, those that have some."""
        return [e for e in examples if len(asked_of(e).evidence_px)] if setting.method in ORACLES else examples

    def predict(self, setting: Setting, examples: Sequence[Example], models: Models, map: Map) -> list[Record]:
        policy, task = models[setting.policy], self.task_of(setting)

        def work(block: Sequence[Example]) -> list[Record]:
            rollouts = greedy_rollouts(policy, task, block)
            return [_record(one, task.reward(one, result)) for one, result in zip(rollouts, task.act(policy, rollouts))]

        key = ("episode", setting.method, setting.blind, policy, task.config, sorted(task.weights.items()))
        return map(work, examples, key)

    def metrics(self, setting: Setting, examples: Sequence[Example], records: Sequence[Record]) -> dict[str, Any]:
        """Means of COLUMNS and of both readers, the turns by status, the answers and the zooms asked for by category.

        ``answer_strict`` counts the episodes that the strict reader could read as well (it would have ended the others,
        or told the policy why not), ``lenient_only`` is the share of the others.
        """
        images = [example.image_id for example in examples]
        values = [_values(record, shown=setting.method in ORACLES) for record in records]
        names = (*self.columns, f"answer{STRICT}", LENIENT_ONLY)
        found: dict[str, Any] = {
            name: intervals.bootstrap_interval([one[name] for one in values], images, self.config.resamples)
            for name in names
        }
        turns = Counter(chain(*(record["statuses"] for record in records)))
        found |= {f"turns/{name}": turns[name] for name in STATUSES}
        kinds = [example.vqa.category if example.vqa else "" for example in examples]
        for kind in sorted(set(kinds)) if any(kinds) else ():
            own = [record for record, one in zip(records, kinds) if one == kind]
            found[f"answer/{kind or 'none'}"] = sum(record["right"] for record in own) / len(own)
            found[f"asked/{kind or 'none'}"] = sum(len(record["zooms"]) for record in own) / len(own)
        return found | {"seconds": sum(record["seconds"] for record in records) / len(records)}

    def sample(self, example: Example, record: Record, title: str) -> Sample:
        zooms = tuple(Region(*zoom["window_px"]) for zoom in record["zooms"] if zoom["status"] == "zoom_executed")
        reward = Reward(record["terms"], record["reward"])
        shown = with_evidence(example), record["text"], zooms, NOTHING, reward, title
        return Sample(*shown, said=record["answer"] or "nothing", statuses=tuple(record["statuses"]))


def _record(rollout: Rollout, reward: Reward) -> Record:
    asked, episode = asked_of(rollout.example), rollout.episode
    zooms = [{"status": zoom.status, "window_px": zoom.window_px and list(zoom.window_px)} for zoom in episode.zooms]
    seen = covered(as_boxes(episode.looked_at), asked.evidence_px) if len(asked.evidence_px) else None
    return {
        "id": rollout.example.id, "question": asked.question, "answers": list(asked.answers), "answer": episode.answer,
        "right": reward.terms["answer"], "evidence_seen": seen, "zooms": zooms, "statuses": list(episode.statuses),
        LENIENT_ONLY: rollout.action.strict is not None, "tokens": len(rollout.token_ids), "reward": reward.total,
        "terms": dict(reward.terms), "text": rollout.text,
    }  # fmt: skip


def _values(record: Record, shown: bool) -> dict[str, float]:
    """The columns of one episode; one that was shown the evidence is neither grounded nor not."""
    zooms = sum(zoom["status"] == "zoom_executed" for zoom in record["zooms"])
    values = {"answer": record["right"], "reward": record["reward"], "zoomed": float(zooms > 0), "zooms": zooms}
    values |= {"asked": len(record["zooms"]), "tokens": record["tokens"], LENIENT_ONLY: float(record[LENIENT_ONLY])}
    values |= {f"answer{STRICT}": 0.0 if record[LENIENT_ONLY] else record["right"]}
    seen = None if shown else record["evidence_seen"]
    if seen is None:
        return values | dict.fromkeys(QUADRANTS, float("nan"))
    grounded, right = seen >= GROUNDED, record["right"] >= RIGHT
    own = f"{'grounded' if grounded else 'ungrounded'}_{'right' if right else 'wrong'}"
    return values | {name: float(name == own) for name in QUADRANTS}


class CropShown(ZoomQA):
    """The policy is shown the evidence as a zoom would show it."""

    whole = False
    """Whether the whole image is shown before the crop."""

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        config, asked = self.config, asked_of(example)
        crop, frame = crop_view(vlm, example.image, evidence_region(example), config)
        question = prompts.question_text(asked.question, asked.options, asked.hint, crops=int(self.whole))
        words = prompts.episode_prompt(question, config.words, 0)
        if not self.whole:
            return PromptSpec(crop, frame, words)
        view, frame = sensing_view(vlm, example.image, config.sensing_side, config.max_view_pixels)
        return PromptSpec([view, crop], frame, words)


class ImageAndCropShown(CropShown):
    """The policy is shown the whole image and the evidence."""

    whole = True


class BlackCrops(ZoomQA):
    """Every crop is black; the first view is not."""

    def start(self, vlm: VisionLanguageModel, example: Example, prompt: PromptSpec) -> ZoomDialogue:
        (black,) = blackened([example])
        return ZoomDialogue(vlm, black, prompt, self.config)


def evidence_region(example: Example) -> Region:
    """One region around all of an example's evidence, padded (difference 2)."""
    (region,) = oracle_regions(replace(example, boxes_px=asked_of(example).evidence_px, crowd=None), 1)
    return region
