"""All rows of one benchmark: the floors and ceilings once, every checkpoint, every budget of regions.

Checkpoints are loaded one after the other: memory does not grow with their number.
"""

from dataclasses import replace
from typing import Callable, Mapping, Sequence

from activeo3 import eval_detection
from activeo3.eval_baselines import NO_ZOOM
from activeo3.eval_config import OF_A_CHECKPOINT, EvalConfig
from activeo3.eval_core import Runner
from activeo3.eval_detection import Line
from activeo3.eval_rollouts import Expert
from activeo3.fixed import fit_fixed
from activeo3.model import VisionLanguageModel
from activeo3.proposals import ASKED
from activeo3.rivals import Checkpoint
from activeo3.types import Example


def compare(
    benchmark: str,
    examples: Sequence[Example],
    training: Sequence[Example],
    rivals: Sequence[Checkpoint],
    load: Callable[[str], VisionLanguageModel],
    start: VisionLanguageModel,
    task_models: Mapping[str, Expert],
    config: EvalConfig,
    runner: Runner,
    say: Callable[[str], None],
) -> list[Line]:
    """The lines of every method, rival and budget, in this order.

    ``load(source)`` is a rival's model, wanted when its turn comes and not held here. ``training`` are the
    pictures that ``fixed`` is fitted on, if it is among the methods.
    """
    most = max(budgets(config))
    fixed = None
    if "fixed" in config.methods:
        fixed = fit_fixed(next(iter(task_models.values())), training, config, runner, most)

    def lines(methods: Sequence[str], policy: VisionLanguageModel | None, rival: Checkpoint) -> list[Line]:
        made = []
        for budget in budgets(config):
            main = budget == config.regions
            wanted = [method for method in methods if main or zooms(method, rival)]
            made += eval_detection.lines(
                benchmark, wanted, examples, policy, start, replace(config, regions=budget), task_models, runner, fixed,
                config.resamples, say, config.black, rival.label, rival.answers, swaps=main,
            )  # fmt: skip
        return made

    common = [method for method in config.methods if method not in OF_A_CHECKPOINT]
    own = [method for method in config.methods if method in OF_A_CHECKPOINT]
    made = lines(common, None, Checkpoint("", "", False))
    if own:
        for rival in rivals:
            made += lines(own, load(rival.source), rival)
    return sorted(made, key=lambda line: config.methods.index(line.row["method"]))  # of equals the order stays


def budgets(config: EvalConfig) -> list[int]:
    """How many regions may be proposed: --regions for the tables, and --budgets for the curve."""
    return sorted({config.regions, *config.budgets})


def zooms(method: str, rival: Checkpoint) -> bool:
    """Whether a budget of regions makes a difference."""
    return not (method in NO_ZOOM or (rival.answers and method == "active"))


def work_of(questions: int, rivals: Sequence[Checkpoint], config: EvalConfig, fitted: int) -> int:
    """How many items ``compare`` will map for so many questions; ``fitted``: for how many ``fixed`` is fitted."""
    acting = len(config.task_model) * (2 if config.black else 1)
    passes = 0
    for method in config.methods:
        for rival in rivals if method in OF_A_CHECKPOINT else [Checkpoint("", "", False)]:
            for budget in budgets(config):
                main = budget == config.regions
                if not main and not zooms(method, rival):
                    continue
                itself = method == "answer" or (rival.answers and method == "active")
                looked = method in ASKED and not itself
                swapped = main and looked and method != "repeat"
                acted = acting // len(config.task_model) if itself else acting
                if method == "direct-native":
                    acted = acting // len(config.task_model) * (set(config.task_model) & {"mllm"} != set())
                passes += looked + swapped + acted
    return questions * passes + (fitted if "fixed" in config.methods else 0)
