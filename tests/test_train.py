"""train.py as a whole: the same run however it is cut, by micro-batch, by rank, or by a kill.

Random policies earn nothing, so the reward here is a number made of the sampled ids, and every answer
gets a region made of them: groups have spread, crops differ, and the task model has work to do.
"""

import contextlib
import io
import os
import runpy
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator, get_args

import numpy as np
import pytest
import tiny_detectors
import torch
from launch import finely_sharded, on_ranks, rank_environment, whole_weights
from small_runs import TASKS, World, look_somewhere, prepare, reward_of_ids, rows_of, small_pictures
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextMLP, Qwen3VLVisionModel

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # train.py is a script beside the package

from scripted import USUAL, rows_in  # noqa: E402

import train  # noqa: E402
from activeo3 import (  # noqa: E402
    attention,
    checkpoints,
    cli,
    curriculum,
    engine,
    eval_baselines,
    eval_runner,
    eval_setup,
    grpo,
    model,
    monitor,
    processes,
    task_zoom_qa,
)
from activeo3.config import ConfigError, TrainConfig  # noqa: E402
from activeo3.data_io import DataError  # noqa: E402
from activeo3.engine import Distributed, Zero3Model  # noqa: E402
from activeo3.geometry import mask_to_rle  # noqa: E402
from activeo3.log import read_rows  # noqa: E402
from activeo3.model import ModelError, VisionLanguageModel  # noqa: E402
from activeo3.packing import Branch, Prompt  # noqa: E402
from activeo3.task_models import act  # noqa: E402
from activeo3.types import VQA, Example, ParsedAnswer, Region, Reward, Rollout, Sampling, TaskResult  # noqa: E402
from activeo3.zoom_calls import Call, ParsedTurn  # noqa: E402

Make = Callable[..., VisionLanguageModel]


# ---------------------------------------------------------------------- a small world with rewards


@pytest.fixture(scope="module")
def models(make_vlm: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Saved random policies: one per family, and ``other``, with weights of another seed."""
    saved = {name: (name, 0) for name in (*USUAL, "qwen3_5")} | {"other": ("qwen3_vl", 1)}
    folder = tmp_path_factory.mktemp("models")
    for name, (family, seed) in saved.items():
        make_vlm(family, seed).save(folder / name)
    return {name: str(folder / name) for name in saved}


@pytest.fixture(scope="module")
def config(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return TrainConfig(
        model=models["qwen3_vl"], ds_config=finely_sharded(tmp_path_factory.mktemp("config")), steps=4, save_every=2,
        prompts=2, micro_prompts=1, group=2, max_new_tokens=12, task_max_new_tokens=8, sensing_side=32, crop_side=32,
        lr=1e-3, warmup=2, eval_examples=0, samples_every=0,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distributed]:
    """This process as a group of one, in the small world."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1).items():
            patch.setenv(name, value)
        prepare(patch)
        yield engine.start(tmp_path_factory.mktemp("alone"))


# ---------------------------------------------------------------------- comparing runs


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or hasattr(a, "__dict__") and same(vars(a), vars(b)))


def assert_same_run(folder: Path, other: Path, step: int) -> None:
    """The last checkpoint of two runs, file by file, and all their rows."""
    here, there = folder / f"checkpoint-{step}", other / f"checkpoint-{step}"
    names = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())
    assert {"model.safetensors", "training_state/random-0.pt"} <= set(names) and any(
        "optim_states" in name for name in names
    )
    for name in names:
        if name.endswith(".pt"):
            states = [torch.load(path / name, weights_only=False) for path in (here, there)]
            assert same(*states), f"{name} differs"
        elif name not in ("activeo3.json", "digests.json", "README.md"):  # they name their own folder and the seconds
            assert (here / name).read_bytes() == (there / name).read_bytes(), f"{name} differs"
    assert rows_of(folder) == rows_of(other) and [row["step"] for row in rows_of(folder)] == list(range(1, step + 1))


class Killed(BaseException):
    """Stands for a kill in this process: nothing catches it."""


# ---------------------------------------------------------------------- one step


@pytest.mark.parametrize("family", [*USUAL, "qwen3_5"])
def test_the_sampler_and_the_scorer_agree(
    family: str, models: dict[str, str], config: TrainConfig, alone: Distributed
) -> None:
    """The log-probability of every token when it was drawn is the one that the update starts from."""
    config = replace(config, temperature=0.7, model=models[family])
    policy = checkpoints.load_policy(alone, config)
    seen: list[Tensor] = []
    torch.manual_seed(0)
    with policy.gathered() as actor:
        hook = actor.model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits[:, -1]))
        prompts, rollouts = train.sample_rollouts(
            actor, TASKS["sense"](config), small_pictures()[:2], 2, Sampling(0.7, 12)
        )
        hook.remove()
    suppressed_ids = list(policy.vlm.suppressed_ids)
    drawn = torch.stack(seen[1:], dim=1).view(2, 2, -1, seen[0].shape[-1]) / 0.7  # (P, G, T, V) after the prefill
    drawn[..., suppressed_ids] = -torch.inf
    packed = policy.vlm.pack(prompts, [[answer.token_ids for answer in of_one] for of_one in rollouts])
    with torch.no_grad():
        logp, _ = policy.token_logps(packed, config.temperature)
    for p, of_one in enumerate(rollouts):
        for g, answer in enumerate(of_one):
            ids = torch.tensor(answer.token_ids)
            expected = drawn[p, g].log_softmax(-1)[torch.arange(len(ids)), ids]
            torch.testing.assert_close(logp[p, g, : len(ids)], expected, rtol=0, atol=1e-4)
    for apart in (0.0, 0.5):  # the update reports the difference that there is, also one that a wrong mask would make
        said = [
            [replace(a, branch=replace(a.branch, logps=tuple(x + apart for x in a.branch.logps))) for a in row]
            for row in rollouts
        ]
        small = replace(config, prompts=2, micro_prompts=1, group=2, beta=0.0, lr=1e-9)
        row = train.update(1, prompts, said, torch.zeros(2, 2), policy, policy, train.task_of(small), small)
        assert row["logp_difference/mean"] == pytest.approx(apart, abs=1e-4)
        assert row["logp_difference/mean"] < row["logp_difference/max"] < apart + 1e-3


def batch_of(vlm: VisionLanguageModel) -> tuple[list[Prompt], list[list[Rollout]], Tensor]:
    """Two prompts with fixed answers of unequal lengths, one of two turns, and their advantages."""
    examples = small_pictures()[:2]
    prompts = vlm.encode([example.image for example in examples], ["Where?", "Find every star, please."])
    lengths, generator = ((9, 2), (4, 12)), torch.Generator().manual_seed(3)
    ids = [
        [tuple(torch.randint(10, 500, (length,), generator=generator).tolist()) for length in row] for row in lengths
    ]
    rollouts = [
        [Rollout(example, answer, "", False, ParsedAnswer(()), ()) for answer in row]
        for example, row in zip(examples, ids)
    ]
    # The last answer is an episode: after five tokens it is shown a crop. So of two ranks, one has no crops.
    (crop,) = vlm.encode_next([examples[1].image.crop((0, 0, 32, 48))], ["Closer."])
    turns = ids[1][1][:5], ids[1][1][5:]
    rollouts[1][1] = replace(rollouts[1][1], branch=Branch(turns, (crop,)))
    rollouts = [
        [replace(a, branch=replace(Branch.of(a.branch or a.token_ids), logps=(-3.0,) * len(a.token_ids))) for a in row]
        for row in rollouts
    ]
    return prompts, rollouts, torch.tensor([[1.0, -1.0], [-0.5, 0.5]])


KINDS = get_args(grpo.Advantage)
REWARDS = torch.tensor([[1.0, 2.5, 4.0], [3.0, 3.0, 3.0], [0.5, 0.0, torch.nan], [2.0, torch.inf, 2.5]])
SCORED = REWARDS.isfinite()
SETTINGS = [
    dict(normalise="response", ratio="token", epochs=1),
    dict(normalise="token", ratio="geometric", epochs=2, recompute=True),
    dict(normalise="constant", ratio="sequence", epochs=2),
    dict(normalise="response", ratio="token", epochs=1, lora=2, train_only=""),
    dict(normalise="response", ratio="token", epochs=1, scoring="cached", train_only="self_attn"),
]
LR = 0.02


def learned(
    config: TrainConfig, ranks: Distributed, reference: str, looked: bool | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Whole weights, and the last readings, after two steps on the fixed batch, or on this rank's share.

    ``looked``: as after a rollout, in which the policy has seen all pictures, which those that are scored behind a
    cache rely on. Plain gradient descent without clipping: AdamW would hide a gradient that is too large by a factor.
    """
    looked = config.scoring == "cached" and config.train_only != "" if looked is None else looked
    original = engine.ds_config
    with pytest.MonkeyPatch.context() as patch:
        sgd = {"type": "SGD", "params": {"lr": LR}}
        patch.setattr(engine, "ds_config", lambda *args: original(*args) | ({"optimizer": sgd} if args[3] else {}))
        config = replace(config, lr=LR, warmup=0, grad_clip=1e9, beta=0.1)
        policy = checkpoints.load_policy(ranks, config)
        frozen = checkpoints.load_frozen(ranks, config, reference)
    prompts, rollouts, advantage = batch_of(policy.vlm)
    mine = slice(ranks.rank * config.prompts, (ranks.rank + 1) * config.prompts)
    if looked:
        with policy.gathered() as actor:
            actor.vision_cache.encode(
                [*prompts, *(seen for row in rollouts for one in row if one.branch for seen in one.branch.shown)]
            )
        assert len(policy.vlm.vision_cache._kept) == 3
    for step in (1, 2):
        row = train.update(
            step, prompts[mine], rollouts[mine], advantage[mine], policy, frozen, train.task_of(config), config
        )
    return whole_weights(policy), {name: value for name, value in row.items() if name != "memory_gb"}


@pytest.fixture(scope="module")
def learned_at_once(
    config: TrainConfig, alone: Distributed, models: dict[str, str]
) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    """What two prompts in one pass teach, by setting."""
    return [learned(replace(config, micro_prompts=2, **setting), alone, models["other"]) for setting in SETTINGS]


def assert_same_lesson(
    one: tuple[dict[str, Tensor], dict[str, float]], two: tuple[dict[str, Tensor], dict[str, float]]
) -> None:
    weights, readings = one
    for name, tensor in two[0].items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")
    for name in (
        "loss",
        "kl",
        "entropy",
        "clip_fraction",
        "grad_norm",
        "ratio_max",
        "logp_difference/mean",
        "logp_difference/max",
    ):
        assert readings[name] == pytest.approx(two[1][name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_micro_batches_add_up(
    index: int, learned_at_once: list, config: TrainConfig, alone: Distributed, models: dict[str, str], make_vlm: Make
) -> None:
    pieces = learned(replace(config, micro_prompts=1, **SETTINGS[index]), alone, models["other"])
    assert_same_lesson(pieces, learned_at_once[index])
    start = make_vlm("qwen3_vl").model.state_dict()
    start |= {name: torch.zeros(()) for name in pieces[0] if "lora_B" in name}
    assert max(float((tensor - start[name]).abs().max()) for name, tensor in pieces[0].items() if name in start) > 1e-3
    assert pieces[1]["kl"] > 0


@pytest.mark.parametrize("train_only", ["", "self_attn"])
def test_activations_that_are_computed_again_teach_the_same(
    train_only: str, config: TrainConfig, alone: Distributed, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With frozen embeddings, too, whose output asks for no gradient."""
    setting = SETTINGS[1] | dict(train_only=train_only, micro_prompts=2, epochs=1)
    kept = learned(replace(config, **setting | dict(recompute=False)), alone, models["other"])
    passes = []
    forward = Qwen3VLTextMLP.forward
    monkeypatch.setattr(Qwen3VLTextMLP, "forward", lambda *args, **given: passes.append(1) or forward(*args, **given))
    again = learned(replace(config, **setting), alone, models["other"])
    assert_same_lesson(again, kept)
    # In each of two steps every layer (its MLP, here) runs for the reference, for the policy, and again in the backward
    # pass.
    assert len(passes) == 2 * 3 * 3


@pytest.mark.parametrize("setting", [dict(recompute=True), dict(lora=2)], ids=["recompute", "lora"])
def test_pictures_that_were_seen_in_the_rollout_teach_the_same(
    setting: dict, config: TrainConfig, alone: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = replace(config, train_only="self_attn", micro_prompts=1, **setting)
    pixels = learned(setting, alone, config.model)  # the reference has the policy's tower
    passes = []
    forward = Qwen3VLVisionModel.forward
    monkeypatch.setattr(
        Qwen3VLVisionModel, "forward", lambda *args, **given: passes.append(1) or forward(*args, **given)
    )
    assert_same_lesson(learned(setting, alone, config.model, looked=True), pixels)
    assert len(passes) == 1  # in two steps with two micro-batches each, for policy and reference


WAYS = {
    "cached": (0, dict(scoring="cached")),
    "cached and recomputed": (1, dict(scoring="cached", epochs=2)),
    "cached with adapters": (3, dict(scoring="cached")),
    "rows": (0, dict(scoring="rows")),
}


@pytest.mark.parametrize("index, setting", WAYS.values(), ids=WAYS)
def test_every_way_of_scoring_teaches_the_same(
    index: int, setting: dict, learned_at_once: list, config: TrainConfig, alone: Distributed, models: dict[str, str]
) -> None:
    """With sharded weights, whose layers run twice before the backward pass of both."""
    found = learned(replace(config, micro_prompts=2, **SETTINGS[index] | setting), alone, models["other"], looked=False)
    assert_same_lesson(found, learned_at_once[index])


@pytest.mark.parametrize("index", [1, 3], ids=["recompute", "lora"])
def test_two_calls_teach_what_one_does(
    index: int,
    learned_at_once: list,
    config: TrainConfig,
    alone: Distributed,
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of attention over a packed row, as for a long prompt: with sharded weights, activations computed again,
    adapters."""
    monkeypatch.setattr(attention, "SHORT", 1)
    free = []
    monkeypatch.setattr(model, "free_columns", lambda *given: free.append(attention.free_columns(*given)) or free[-1])
    found = learned(replace(config, micro_prompts=2, **SETTINGS[index]), alone, models["other"])
    assert_same_lesson(found, learned_at_once[index])
    assert free and min(free) > 10


def test_only_the_named_parameters_learn(
    config: TrainConfig, alone: Distributed, models: dict[str, str], make_vlm: Make
) -> None:
    weights, _ = learned(replace(config, train_only="self_attn"), alone, models["other"])
    start = make_vlm("qwen3_vl").model.state_dict()
    moved = {name for name, tensor in weights.items() if not torch.equal(tensor, start[name])}
    assert moved and all("self_attn" in name for name in moved)
    with pytest.raises(ConfigError, match="--train_only nothing_like_it matches no parameter"):
        learned(replace(config, train_only="nothing_like_it"), alone, models["other"])


# ---------------------------------------------------------------------- whole runs on one rank


def test_a_model_with_a_running_state_is_trained(config: TrainConfig, models: dict[str, str], tmp_path: Path) -> None:
    """Two steps of episodes from random weights, through rollout, cached scoring, update and checkpoint."""
    config = replace(
        config, model=models["qwen3_5"], steps=2, output_dir=str(tmp_path), train_only="language_model", beta=0.1
    )
    policies, _ = watched_main(config)
    assert all(not torch.equal(before, after) for before, after in zip(policies, policies[1:]))
    first, second = rows_of(tmp_path)
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 0 and first["ratio_max"] == pytest.approx(1)
    again = VisionLanguageModel.load(str(tmp_path / "checkpoint-2"), torch.float32)
    assert torch.equal(torch.cat([tensor.flatten() for tensor in again.model.state_dict().values()]), policies[-1])


@pytest.fixture(scope="module")
def straight(
    config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, list[Tensor], list[Tensor]]:
    """A run of four steps that nothing disturbs: its config, and policy and reference after every step."""
    config = replace(config, output_dir=str(tmp_path_factory.mktemp("straight")))
    policies, references = watched_main(config)
    return config, policies, references


def watched_main(config: TrainConfig) -> tuple[list[Tensor], list[Tensor]]:
    """Run train.main; all weights of policy and reference before the first and after every step, as vectors."""
    policies: list[Tensor] = []
    references: list[Tensor] = []
    step_of = train.train_step

    def vector(sharded: Zero3Model) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in whole_weights(sharded).values()])

    def watched(step: int, examples: list[Example], policy: Zero3Model, reference: Zero3Model, *others: Any) -> Any:
        if not policies:
            policies.append(vector(policy)), references.append(vector(reference))
        result = step_of(step, examples, policy, reference, *others)
        policies.append(vector(policy)), references.append(vector(reference))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", watched)
        train.main(config)
    return policies, references


def test_at_the_first_step_the_policy_is_the_one_that_sampled_and_the_reference(straight: tuple) -> None:
    row, *later = rows_of(Path(straight[0].output_dir))
    assert row["kl"] == 0.0 and row["clip_fraction"] == 0.0 and row["ratio_max"] == 1.0
    assert row["reward_spread"] > 0 and row["grad_norm"] > 0 and row["entropy"] > 0
    assert row["lr"] == 5e-4 and later[0]["lr"] == 1e-3
    assert all(
        0 < other["logp_difference/mean"] < 1e-5 and other["logp_difference/max"] < 1e-3 for other in (row, *later)
    )
    assert all(other["kl"] > 0 and other["ratio_max"] == 1.0 for other in later)


def test_the_policy_moves_and_the_reference_does_not(straight: tuple) -> None:
    _, policies, references = straight
    assert torch.equal(policies[0], references[0])
    for before, after in zip(policies, policies[1:]):
        assert not torch.equal(before, after)
    for reference in references[1:]:
        assert torch.equal(reference, references[0])


def dies_in_step_3(config: TrainConfig) -> None:
    """Train, and be killed between the answers and the update of step 3."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        act = TASKS["sense"].act

        def act_or_die(*args: Any) -> list[TaskResult]:
            if (Path(config.output_dir) / "checkpoint-2").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args)

        patch.setattr(TASKS["sense"], "act", act_or_die)
        train.main(config)


def test_a_run_that_is_killed_twice_is_the_run(
    straight: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILL in step 3, a kill while checkpoint 4 is being written, and the same command again."""
    config = replace(straight[0], output_dir=str(tmp_path))
    on_ranks(1, tmp_path, dies_in_step_3, config, ends=-signal.SIGKILL)
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["checkpoint-2"]

    def half_a_model(self: VisionLanguageModel, folder: Path, weights: None = None) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(VisionLanguageModel, "save", half_a_model)
        train.main(config)
    assert (tmp_path / "building-checkpoint-4" / "model.safetensors").exists()
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["checkpoint-2"]
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 4  # two more than the checkpoint knows

    train.main(config)
    assert not list(tmp_path.glob("building-*"))
    assert_same_run(tmp_path, Path(straight[0].output_dir), step=4)


def test_a_run_that_saves_on_exit_is_the_run(straight: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked to end in step 3, after which no checkpoint is due."""
    config = replace(straight[0], output_dir=str(tmp_path))
    step_of = train.train_step

    def asked_in_step_3(step: int, *others: Any) -> Any:
        patch.setattr(processes._State, "asked", signal.SIGTERM if step == 3 else 0)
        return step_of(step, *others)

    def leave(number: int) -> None:
        raise Killed(number)

    with monkeypatch.context() as patch, pytest.raises(Killed, match="15"):
        patch.setattr(train, "train_step", asked_in_step_3)
        patch.setattr(processes, "leave", leave)
        train.main(replace(config, save_on_exit=True))
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    train.main(config)
    assert_same_run(tmp_path, Path(straight[0].output_dir), step=4)


class Torn(World):
    """A world in which every third picture cannot be read."""

    def __getitem__(self, index: int) -> Example:
        if index % 3 == 0:
            raise DataError(f"picture {index} is torn")
        return super().__getitem__(index)


def test_what_was_left_out_before_an_interruption_is_named_at_the_end(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curriculum, "open_dataset", lambda *_, **__: Torn(small_pictures()))
    lists = []
    for steps in [(4,), (2, 4)]:
        folder = tmp_path / str(len(steps))
        for last in steps:
            train.main(replace(config, output_dir=str(folder), steps=last))
        (path,) = folder.glob("left_out-*.txt")
        lists.append(path.read_text().splitlines())
    assert lists[0] == lists[1] and len(lists[0]) == len(set(lists[0])) > 1


def test_two_updates_per_rollout_are_resumed_as_well(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, epochs=2, lr=1e-2, keep=1)
    train.main(replace(config, output_dir=str(tmp_path / "straight")))
    train.main(replace(config, output_dir=str(tmp_path / "halves"), steps=2))
    train.main(replace(config, output_dir=str(tmp_path / "halves"), keep=0))
    assert_same_run(tmp_path / "straight", tmp_path / "halves", step=4)
    assert any(row["ratio_max"] > 1 for row in rows_of(tmp_path / "straight"))
    kept = [[path.name for path in checkpoints.complete(tmp_path / run)] for run in ("straight", "halves")]
    assert kept == [["checkpoint-4"], ["checkpoint-2", "checkpoint-4"]]


def test_a_finished_run_prints_its_table_again(
    straight: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = replace(straight[0], eval_examples=2)
    folder = Path(config.output_dir)
    before = (folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(train, "train_step", None)  # would raise if it were called
    train.main(config)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "region_recall" in table[0] and [line.split()[1] for line in table[2:8]] == [
        "direct", "random", "grid", "cot", "active", "oracle-regions"
    ]  # fmt: skip
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert rows_in(folder) and (folder / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("name, kind", [("oracle", ""), ("detector", "grounding-dino"), ("detector", "rt_detr")])
def test_another_task_model_works_on_the_crops(
    name: str,
    kind: str,
    config: TrainConfig,
    make_detector: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In training and in the table at its end; the start policy is then asked for nothing but its regions."""
    asked, encode = [], VisionLanguageModel.encode

    def listen(self: VisionLanguageModel, views: Any, texts: list[str], *names: Any) -> Any:
        asked.extend(texts)
        return encode(self, views, texts, *names)

    monkeypatch.setattr(VisionLanguageModel, "encode", listen)
    if kind == "rt_detr":  # its labels are all that is asked for
        tiny_detectors.save(kind, tmp_path / kind)
    folder = str(tmp_path / kind) if kind == "rt_detr" else kind and make_detector(kind)
    detector = {"task_checkpoint": folder, "box_threshold": 0.0, "text_threshold": 0.0}
    train.main(replace(
        config, output_dir=str(tmp_path), task_model=name, steps=1, samples_every=1, eval_examples=2, regions=1, least_seen=0.0, **detector
    ))  # fmt: skip
    assert asked and all(text.startswith("Where") for text in asked)
    rows = rows_in(tmp_path)
    assert {row["task_model"] for row in rows} == {name} and len(rows) == 6
    drawn = tmp_path / "samples" / "step-000001"
    scores = [score for sample in read_rows(drawn / "samples.jsonl") for score in sample["scores"]]
    if name == "oracle":
        assert set(scores) <= {1.0} and {r["method"]: r["metrics"]["AP"] for r in rows}["oracle-regions"] == 1.0
    else:
        assert len(set(scores)) > 3 and all(0 < score < 1 for score in scores)


def test_another_language_model_acts_frozen_and_sharded(
    config: TrainConfig, models: dict[str, str], alone: Distributed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the other family, with other coordinates and view sizes; it finds what the same model finds whole, and stays
    as it is."""
    config = replace(
        config, task_checkpoint=models["qwen2_5_vl"], output_dir=str(tmp_path), steps=1, eval_examples=2, regions=1
    )
    asked, encode = [], VisionLanguageModel.encode

    def listen(self: VisionLanguageModel, views: Any, texts: list[str], *names: Any) -> Any:
        asked.extend((self.family, text.split()[0]) for text in texts)
        return encode(self, views, texts, *names)

    step_of, steps = train.train_step, []

    def kept(
        step: int,
        examples: list[Example],
        policy: Zero3Model,
        reference: Zero3Model,
        task_model: Zero3Model,
        *others: Any,
    ) -> Any:
        before = whole_weights(task_model)
        row, judged = step_of(step, examples, policy, reference, task_model, *others)
        assert all(torch.equal(tensor, before[name]) for name, tensor in whole_weights(task_model).items())
        steps.append(judged)
        return row, judged

    monkeypatch.setattr(VisionLanguageModel, "encode", listen)
    monkeypatch.setattr(train, "train_step", kept)
    train.main(config)
    assert set(asked) == {("qwen3_vl", "Where"), ("qwen2_5_vl", "Find")}  # in training and in the table at its end
    whole = VisionLanguageModel.load(models["qwen2_5_vl"], torch.float32)
    answers, outcomes = [answer for answer, *_ in steps[0]], [outcome for _, outcome, _ in steps[0]]
    expected = act(whole, [answer.example for answer in answers], [answer.regions for answer in answers], config)
    assert [outcome.texts for outcome in outcomes] == [outcome.texts for outcome in expected] and len(
        set(outcomes[0].texts[0])
    ) > 3
    rows = rows_in(tmp_path)
    assert {row["task_model"] for row in rows} == {"mllm-qwen2_5_vl"} and "mllm-qwen2_5_vl" in (
        tmp_path / "results.md"
    ).read_text()


def test_masks_are_corrected_in_training_and_a_continued_run_is_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--task segment: every group starts from one first mask, and the table at the end is that of masks."""

    def masked(*_: Any, **__: Any) -> World:
        examples = []
        for example in small_pictures():
            true = np.zeros(example.size_px[::-1], dtype=bool)
            for x1, y1, x2, y2 in example.boxes_px.astype(int):
                true[y1:y2, x1:x2] = True
            examples.append(
                replace(example, boxes_px=example.boxes_px[:1], masks=lambda true=true: [mask_to_rle(true)])
            )
        return World(examples)

    monkeypatch.setattr(curriculum, "open_dataset", masked)
    monkeypatch.setattr(eval_setup.data, "open_dataset", lambda *_, **__: World(masked()[:3]))

    def look_well(*given: Any) -> tuple[list[Prompt], list[list[Rollout]]]:
        """Answers that can be read: others earn nothing."""
        prompts, rollouts = look_somewhere(*given)
        return prompts, [[replace(answer, action=ParsedAnswer(())) for answer in of_one] for of_one in rollouts]

    monkeypatch.setattr(train, "sample_rollouts", look_well)
    settings = replace(
        config, task="segment", task_model="oracle", steps=2, save_every=1, samples_every=2, eval_examples=2
    )
    train.main(replace(settings, output_dir=str(tmp_path / "straight")))
    train.main(replace(settings, output_dir=str(tmp_path / "halves"), steps=1))
    train.main(replace(settings, output_dir=str(tmp_path / "halves")))
    assert_same_run(tmp_path / "straight", tmp_path / "halves", 2)
    for row in rows_of(tmp_path / "straight"):
        assert 0.3 < row["reward/task"] < 1 and 0 < row["reward/coverage"] < 1 and row["reward_spread"] > 0
    rows = rows_in(tmp_path / "straight")
    assert [row["method"] for row in rows] == ["random", "grid", "cot", "active", "oracle-regions"]
    assert {row["metrics"]["mIoU@0"] for row in rows} == {rows[0]["metrics"]["mIoU@0"]} and rows[4]["metrics"][
        "gain"
    ] > 0
    drawn = tmp_path / "straight" / "samples" / "step-000002"
    parts = ("crops", "picture", "small")
    group = {f"samples-{answer:02d}-{part}.jpg" for answer in range(settings.group) for part in parts}
    assert {path.name for path in drawn.glob("*.jpg") if not path.name.startswith("held-out")} == group | {"view.jpg"}


def test_a_changed_flag_or_another_number_of_processes_is_refused(
    straight: tuple, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the script itself: one sentence, no traceback, nothing touched."""
    config, *_ = straight
    before = sorted(Path(config.output_dir).rglob("*"))
    changed = {name: value for name, value in vars(config).items() if value != getattr(TrainConfig(), name)}
    flags: dict[str, list[str]] = {}  # rarely changed fields share a flag
    for field in (cli.fields_of(TrainConfig)[name] for name in changed if name not in ("data", "preset")):
        words = [f"{field.name}={changed[field.name]}" if field.joint else str(changed[field.name])]
        flags.setdefault(f"--{field.joint or field.name}", []).extend(words)
    monkeypatch.setattr(
        sys, "argv", ["train.py", *sum(([flag, *words] for flag, words in flags.items()), []), "--beta=0.5"]
    )
    with pytest.raises(
        SystemExit, match=r"^activeo3: .*checkpoint-4 belongs to another run: --beta was 0.04 and is now 0.5"
    ):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    monkeypatch.setattr(
        engine, "start", lambda folder, _: Distributed(0, 2, torch.device("cpu"), folder / "libraries-0.log")
    )
    with pytest.raises(ConfigError, match="made by 1 process, and there are now 2"):
        train.main(config)
    assert sorted(Path(config.output_dir).rglob("*")) == before


def test_a_run_that_only_skips_ends_with_one_sentence(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    honest = train.grpo.policy_loss

    def infinite(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, seen = honest(*args)
        return loss * torch.inf, seen

    monkeypatch.setattr(train.grpo, "policy_loss", infinite)
    with pytest.raises(ConfigError, match=r"^2 steps in a row skipped an update .* was not finite; .*\.$"):
        train.main(replace(config, output_dir=str(tmp_path), max_skipped=2))
    assert [row["skipped_steps"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert capsys.readouterr().out.count("update skipped; examples: mosaic/") == 2


@pytest.mark.parametrize("masked", [False, True])
def test_answers_that_were_cut_off_may_teach_nothing(
    masked: bool, config: TrainConfig, alone: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advantages that reach the update: with and without the answer that hit the length limit."""
    config = replace(config, mask_truncated=masked, group=4, prompts=1, micro_prompts=1)
    policy, looked, given, worth = (
        checkpoints.load_policy(alone, config),
        train.sample_rollouts,
        [],
        iter((5.0, 1.0, 2.0, 6.0)),
    )

    def look_cut(*args: Any) -> tuple[list[Prompt], list[list[Rollout]]]:
        prompts, (answers,) = looked(*args)
        return prompts, [[replace(answer, finished=g != 0) for g, answer in enumerate(answers)]]

    monkeypatch.setattr(TASKS["sense"], "reward", lambda *_: Reward({}, next(worth)))
    monkeypatch.setattr(train, "sample_rollouts", look_cut)
    monkeypatch.setattr(train, "update", lambda step, prompts, rollouts, advantage, *_: given.append(advantage) or {})
    train.train_step(1, small_pictures()[:1], policy, policy, policy, train.task_of(config), config)
    rest = grpo.group_advantages(torch.tensor([[1.0, 2.0, 6.0]]))
    assert torch.equal(
        given[0],
        torch.cat([torch.zeros(1, 1), rest], dim=1)
        if masked
        else grpo.group_advantages(torch.tensor([[5.0, 1.0, 2.0, 6.0]])),
    )
    assert (given[0][0, 0] == 0) == masked


# ---------------------------------------------------------------------- two ranks


def on_two_ranks(config: TrainConfig, reference: str, with_states: str, folder: Path) -> dict[str, Any]:
    """All that two processes are asked to show, in one start of them."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        ranks = engine.start(folder)
        one = replace(config, prompts=1, micro_prompts=1)
        return {
            "totals": ranks.all_reduce_sum({"rank": ranks.rank, "one": 1.0}),
            "gather": ranks.all_gather(f"rank {ranks.rank}"),
            "advantages": [
                grpo.advantages(REWARDS[ranks.rank :: 2], kind, True, ranks.all_reduce_sum, SCORED[ranks.rank :: 2])
                for kind in KINDS
            ],
            "share": [ranks.map(lambda part: (part, ranks.rank), "abcde"[:count]) for count in (5, 1, 0)],
            "compared": compared(one, ranks, folder / "compared", reference),
            "learned": [learned(replace(one, **setting), ranks, reference) for setting in SETTINGS],
            "ragged": ragged_step(one, ranks),
            "other_acts": ragged_step(
                replace(one, task_checkpoint=str(Path(config.model).with_name("qwen2_5_vl"))), ranks
            ),
            "episodes": ragged_episodes(one, ranks),
            "states": ragged_episodes(replace(one, model=with_states, train_only="language_model"), ranks),
            "infinite": run_with_infinity(replace(one, output_dir=str(folder / "straight")), ranks),
            "resumed": [
                run_with_infinity(replace(one, output_dir=str(folder / "halves"), steps=2), ranks),
                run_with_infinity(replace(one, output_dir=str(folder / "halves"), eval_examples=2), ranks),
            ],
        }


def compared(config: TrainConfig, ranks: Distributed, folder: Path, reference: str) -> list[dict[str, Any]]:
    """The rows of the table at the end of a run, on this rank, without the seconds; three blocks, the last one
    smaller."""
    config = replace(config, output_dir=str(folder))
    policy = checkpoints.load_policy(ranks, config)
    frozen = checkpoints.load_frozen(ranks, config, reference)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").touch()
    kept: list[dict[str, Any]] = []
    whole = eval_setup.evaluate

    def look_widely(*args: Any) -> tuple[list[Prompt], list[list[Rollout]]]:
        """Regions that hold one true box, the other, both or none."""
        prompts, rollouts = look_somewhere(*args)
        wide = lambda r: Region(r.x1 / 2, r.y1 / 2, r.x1 + 40, r.y1 + 48)  # noqa: E731
        return prompts, [[replace(a, regions=tuple(map(wide, a.regions))) for a in of_one] for of_one in rollouts]

    def run(*args: Any, **named: Any) -> Any:
        rows = whole(*args, **named)
        kept.extend({"method": row.setting.method, "metrics": {**row.metrics, "seconds": None}} for row in rows)
        return rows

    with pytest.MonkeyPatch.context() as patch, policy.gathered() as actor, frozen.gathered() as task_model:
        patch.setattr(eval_baselines, "sample_rollouts", look_widely)
        patch.setattr(eval_setup, "evaluate", run)
        patch.setattr(eval_runner, "BATCH", 3)
        table, examples = eval_setup.compare_start_and_trained(
            actor, task_model, task_model, small_pictures(), config, eval_runner.Runner(ranks)
        )
        if ranks.rank == 0:
            eval_setup.write_end(table, examples, config, ranks.print)
    ranks.barrier()
    return kept


def ragged_step(config: TrainConfig, ranks: Distributed) -> dict[str, Any]:
    """One step in which rank 0 writes two tokens and has no crop, rank 1 writes twelve and has three."""
    policy, reference = (checkpoints.load_policy(ranks, config), checkpoints.load_frozen(ranks, config, config.model))
    task_model = checkpoints.load_task_model(train.task_of(config), reference, config)
    generate_multi_turn, look_once = VisionLanguageModel.generate_multi_turn, train.sample_rollouts

    def ragged(self: VisionLanguageModel, prompts: Any, group: int, sampling: Sampling, observe: Any = None) -> Any:
        return generate_multi_turn(
            self, prompts, group, replace(sampling, max_new_tokens=12 if ranks.rank else 2), observe
        )

    def ragged_look(*args: Any) -> tuple[list[Prompt], list[list[Rollout]]]:
        prompts, rollouts = look_once(*args)
        regions = tuple(Region(8.0 * k, 0, 8.0 * k + 24, 24) for k in range(3 * ranks.rank))
        return prompts, [[replace(answer, regions=regions) for answer in of_one] for of_one in rollouts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisionLanguageModel, "generate_multi_turn", ragged)
        patch.setattr(train, "sample_rollouts", ragged_look)
        patch.setattr(policy.vlm.model.lm_head, "forward", never_ending(policy.vlm))
        group = torch.distributed.group.WORLD
        before = group._get_sequence_number_for_group()
        row, judged = train.train_step(
            1, [small_pictures()[ranks.rank]], policy, reference, task_model, train.task_of(config), config
        )
        collectives = group._get_sequence_number_for_group() - before
    lengths, texts = [len(answer.token_ids) for answer, *_ in judged], [outcome.texts for _, outcome, _ in judged]
    no_numbers = without_numbers(config, ranks, policy, reference)
    return {"lengths": lengths, "collectives": collectives, "row": row, "texts": texts, "no_numbers": no_numbers}


def ragged_episodes(config: TrainConfig, ranks: Distributed) -> dict[str, Any]:
    """A step of episodes in which rank 0 answers at once, and rank 1 looks closer three times before its turns are
    over."""
    config = replace(config, task="zoom_qa", max_turns=4)
    policy, reference = (checkpoints.load_policy(ranks, config), checkpoints.load_frozen(ranks, config, config.model))
    looks = ParsedTurn((Call((0.2, 0.2, 0.8, 0.9), shares=True),)) if ranks.rank else ParsedTurn(answer="7")
    picture = small_pictures()[ranks.rank]
    example = replace(picture, vqa=VQA("What is it?", ("7",), evidence_px=np.array([[8.0, 8, 24, 24]])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_zoom_qa, "read_turn", lambda *_: looks)  # weights at random say nothing that could be read
        patch.setattr(policy.vlm.model.lm_head, "forward", biased_head(policy.vlm, 8.0))
        patch.setattr(train.grpo, "advantages", lambda *_: torch.tensor([[1.0, -1.0]]))  # all rewards are alike here
        group = torch.distributed.group.WORLD
        before = group._get_sequence_number_for_group()
        row, judged = train.train_step(1, [example], policy, reference, reference, train.task_of(config), config)
        collectives = group._get_sequence_number_for_group() - before
    turns = [[len(turn) for turn in answer.branch.turns] for answer, *_ in judged]
    return {"turns": turns, "collectives": collectives, "row": row, "weights": whole_weights(policy)}


def never_ending(vlm: VisionLanguageModel) -> Callable[[Tensor], Tensor]:
    """The head, without a chance for the end token: every answer reaches its limit."""
    return biased_head(vlm, -1e4)


def biased_head(vlm: VisionLanguageModel, amount: float) -> Callable[[Tensor], Tensor]:
    """The head, with another chance for the end token."""
    head = vlm.model.lm_head
    offset = torch.zeros(vlm.model.config.text_config.vocab_size).index_fill(0, torch.tensor([vlm.end_token]), amount)
    forward = head.forward
    return lambda hidden: forward(hidden) + offset


def run_with_infinity(config: TrainConfig, ranks: Distributed) -> dict[str, Any]:
    """A run in which the loss of step 2 is infinite on rank 1 alone."""
    honest, step_of, now = train.grpo.policy_loss, train.train_step, [0]

    def at(step: int, *args: Any) -> Any:
        now[0] = step
        return step_of(step, *args)

    def loss(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value, seen = honest(*args)
        return (value * torch.inf if ranks.rank == 1 and now[0] == 2 else value), seen

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(train, "train_step", at)
        patch.setattr(train.grpo, "policy_loss", loss)
        policies, references = watched_main(config)
    return {"policies": policies, "references": references, "said": said.getvalue()}


def without_numbers(
    config: TrainConfig, ranks: Distributed, policy: Zero3Model, reference: Zero3Model
) -> dict[str, Any]:
    """A step in which rank 1 alone has rewards that are NaN, and one in which it alone has such logits, of models that
    are there."""

    def score(*args: Any) -> Reward:
        earned = reward_of_ids(*args)
        return Reward({**earned.terms, "task": torch.nan}, torch.nan) if ranks.rank == 1 else earned

    examples, spoiled = [small_pictures()[ranks.rank]], lambda module, inputs, logits: logits * torch.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASKS["sense"], "reward", score)
        row, judged = train.train_step(2, examples, policy, reference, reference, train.task_of(config), config)
    hook = policy.vlm.model.lm_head.register_forward_hook(spoiled) if ranks.rank == 1 else None
    with pytest.raises(ModelError) as stopped, checkpoints.naming_last_good(config, 3, 2):
        train.train_step(3, examples, policy, reference, reference, train.task_of(config), config)
    if hook:
        hook.remove()
    return {"row": row, "faults": ranks.all_gather(monitor.faults(judged)), "stopped": str(stopped.value)}


@pytest.fixture(scope="module")
def two_ranks(
    config: TrainConfig, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict], Path]:
    folder = tmp_path_factory.mktemp("two")
    return on_ranks(2, folder, on_two_ranks, config, models["other"], models["qwen3_5"], folder, seconds=600), folder


def test_ranks_add_and_gather(two_ranks: tuple[list[dict], Path]) -> None:
    for result in two_ranks[0]:
        assert result["totals"] == {"rank": 1.0, "one": 2.0}
        assert result["gather"] == ["rank 0", "rank 1"]
        assert result["share"] == [[("a", 0), ("b", 1), ("c", 0), ("d", 1), ("e", 0)], [("a", 0)], []]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_compare_answers_as_one_does(kind: str, two_ranks: tuple[list[dict], Path]) -> None:
    whole = grpo.advantages(REWARDS, kind, scored=SCORED)
    for rank, result in enumerate(two_ranks[0]):
        torch.testing.assert_close(result["advantages"][KINDS.index(kind)], whole[rank::2])


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_two_ranks_with_a_prompt_each_learn_what_one_learns_from_both(
    index: int, two_ranks: tuple[list[dict], Path], learned_at_once: list
) -> None:
    (first, second), _ = two_ranks
    assert_same_lesson(first["learned"][index], learned_at_once[index])
    assert same(first["learned"][index][0], second["learned"][index][0])
    assert first["learned"][index][1] == second["learned"][index][1]


def test_ranks_whose_answers_and_crops_differ_in_number_do_not_wait_for_ever(
    two_ranks: tuple[list[dict], Path],
) -> None:
    first, second = (result["ragged"] for result in two_ranks[0])
    assert (first["lengths"], second["lengths"]) == ([2, 2], [12, 12])
    assert first["collectives"] == second["collectives"] > 0
    assert first["row"]["tokens/mean"] == second["row"]["tokens/mean"] == 7.0


def test_another_language_model_is_gathered_on_ranks_that_differ(
    two_ranks: tuple[list[dict], Path], models: dict[str, str], config: TrainConfig
) -> None:
    """Sharded over two ranks it says what it says whole: of three crops on one rank, and of none on the other."""
    first, second = (result["other_acts"] for result in two_ranks[0])
    assert first["collectives"] == second["collectives"] > 0
    whole, regions = (
        VisionLanguageModel.load(models["qwen2_5_vl"], torch.float32),
        [Region(8.0 * k, 0, 8.0 * k + 24, 24) for k in range(3)],
    )
    (expected,) = act(whole, [small_pictures()[1]], [regions], replace(config, task_max_new_tokens=12))
    assert second["texts"] == [expected.texts] * 2 and first["texts"] == [(), ()]
    assert second["texts"] != two_ranks[0][1]["ragged"]["texts"]


@pytest.mark.parametrize("model", ["episodes", "states"])
def test_ranks_whose_episodes_differ_in_turns_and_crops_do_not_wait_for_ever(
    model: str, two_ranks: tuple[list[dict], Path]
) -> None:
    first, second = (result[model] for result in two_ranks[0])
    assert [len(turns) for turns in first["turns"]] == [1, 1]
    assert max(len(turns) for turns in second["turns"]) == 4
    assert first["collectives"] == second["collectives"] > 0
    assert first["row"]["grad_norm"] == second["row"]["grad_norm"] > 0 and first["row"]["ratio_max"] == 1.0
    assert same(first["weights"], second["weights"])


def test_an_infinite_loss_on_one_rank_is_skipped_on_all(two_ranks: tuple[list[dict], Path]) -> None:
    (first, second), folder = two_ranks
    for result in (first["infinite"], second["infinite"]):
        start, after_1, after_2, after_3, after_4 = result["policies"]
        assert not torch.equal(start, after_1)
        assert torch.equal(after_1, after_2)
        assert not torch.equal(after_2, after_3) and not torch.equal(after_3, after_4)
        assert after_4.isfinite().all()
        assert all(torch.equal(reference, start) for reference in result["references"])
    assert same(first["infinite"]["policies"], second["infinite"]["policies"])
    rows = rows_of(folder / "straight")
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1]
    assert rows[1]["loss"] is None and all(row["loss"] is not None for row in rows[2:])
    assert second["infinite"]["said"] == ""


def test_what_is_no_number_on_one_rank_is_known_to_all(two_ranks: tuple[list[dict], Path], config: TrainConfig) -> None:
    """A reward is left out, counted and named on both; a logit stops both with one sentence, and neither waits for the
    other."""
    first, second = (result["ragged"]["no_numbers"] for result in two_ranks[0])
    assert first["faults"] == second["faults"] == [[], ["mosaic/1 (task nan)"]]
    for row in (first["row"], second["row"]):
        assert (
            row["rewards_left_out"] == 2
            and np.isfinite([row["reward"], row["reward/task"], row["loss"], row["grad_norm"]]).all()
        )
        assert row["skipped_steps"] == 0
    assert first["stopped"] == second["stopped"]
    for words in (
        "step 3: the policy gives logits that are not finite",
        "its largest weight is ",
        f"there is none, only {config.model}. ",
    ):
        assert words in first["stopped"]


def test_the_examples_of_every_rank_are_named_when_an_update_is_skipped(
    two_ranks: tuple[list[dict], Path], config: TrainConfig
) -> None:
    line, last = [line for line in two_ranks[0][0]["infinite"]["said"].splitlines() if "skipped" in line]
    assert last == "in 4 steps: 1 update skipped, because not finite"
    stream = [train.TrainingOrder(small_pictures(), 1, config.seed, rank, 2).at(1)[0].id for rank in (0, 1)]
    assert line == f"step 2: loss or gradient not finite, update skipped; examples: {', '.join(stream)}"


def test_two_ranks_resume_as_well(two_ranks: tuple[list[dict], Path]) -> None:
    results, folder = two_ranks
    assert_same_run(folder / "straight", folder / "halves", step=4)
    assert (folder / "straight" / "checkpoint-4" / "training_state" / "random-1.pt").exists()


def test_two_ranks_share_the_held_out_pictures_and_make_the_table_of_one(
    two_ranks: tuple[list[dict], Path], config: TrainConfig, models: dict[str, str], alone: Distributed, tmp_path: Path
) -> None:
    one = compared(replace(config, prompts=1), alone, tmp_path, models["other"])
    assert [row["method"] for row in one] == ["direct", "random", "grid", "cot", "active", "oracle-regions"]
    cot, active = (row["metrics"] for row in one if row["method"] in ("cot", "active"))
    assert 0 < active["region_recall"].value < 1 and cot["swap_query"] != active["swap_query"]  # something to get wrong
    results, folder = two_ranks
    assert repr(one) == repr(results[0]["compared"]) == repr(results[1]["compared"])  # NaN is NaN
    here, there = ({"rows": rows_in(path)} for path in (tmp_path, folder / "compared"))
    for rows in (here["rows"], there["rows"]):
        assert all(row["metrics"].pop("seconds") > 0 for row in rows)
    assert here == there and (folder / "compared" / "report.html").exists()


def test_one_rank_speaks_at_the_end(two_ranks: tuple[list[dict], Path]) -> None:
    first, second = (result["resumed"][1]["said"] for result in two_ranks[0])
    assert "| oracle-regions" in first and second == ""
