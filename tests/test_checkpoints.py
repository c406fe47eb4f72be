"""checkpoints.py, and checkpoint_files.py: damage is named and never used, nothing in a folder is run."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from attack.checkpoints import (
    LISTINGS,
    Bomb,
    Target,
    attack,
    damaged_copy,
    evaluated,
    fingerprint,
    make_target,
    resumed,
    trials,
)
from launch import finely_sharded  # noqa: F401 (a fixture)

from activeo3 import checkpoint_files, checkpoint_room, checkpoints, outputs
from activeo3.config import ConfigError, TrainConfig
from activeo3.engine import Distributed
from activeo3.model import ModelError, VisionLanguageModel

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
RANDOM = "training_state/random-0.pt"
OPTIMIZER = "training_state/deepspeed/zero_pp_rank_0_mp_rank_00_optim_states.pt"
WEIGHTS = "training_state/deepspeed/zero_pp_rank_0_mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def target(
    ranks: Distributed, make_vlm: Callable[..., VisionLanguageModel], tmp_path_factory: pytest.TempPathFactory
) -> Target:
    """A run with the checkpoints 1 and 2. Tests damage copies of it."""
    folder = tmp_path_factory.mktemp("target")
    make_vlm("qwen3_vl").save(folder / "start")
    config = TrainConfig(
        model=str(folder / "start"),
        ds_config=finely_sharded(folder),
        output_dir=str(folder / "run"),
        prompts=2,
        micro_prompts=2,
        steps=3,
    )
    return make_target(ranks, config, folder / "was-run")


@pytest.fixture
def copy(target: Target, tmp_path: Path) -> Target:
    """A copy of the run whose files may be changed."""
    shutil.copytree(target.run, tmp_path / "run")
    return replace(target, config=replace(target.config, output_dir=str(tmp_path / "run")))


def flip(path: Path, place: float = 0.5) -> None:
    """Flip one bit of a file, in the middle or elsewhere."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)


# ---------------------------------------------------------------------- the attack, at small size


def test_no_damage_is_used_and_nothing_is_run(target: Target, tmp_path: Path) -> None:
    """A seeded draw of the trials of tests/attack/checkpoints.py, and those that went wrong once."""
    every = [(trial, listing) for trial in trials(target) for listing in LISTINGS]
    assert len(every) > 2000
    once = {
        "json []",
        "model_type is {}",
        "config is {}",
        "text_config is None",
        "deleted",
        "a pipe",
        "torch bomb",
        "step is True",
        "step is '2'",
        "world is []",
        "config.model is 2.5",
        "numpy is (1, 1000000000, 0, 0, 0)",
    }
    always = [
        (trial, listing)
        for trial, listing in every
        if trial.kind in once and trial.name in ("activeo3.json", "config.json", RANDOM)
    ]
    drawn = random.Random(16).sample(every, 15)
    faults = [fault for *_, found in attack(target, always + drawn, tmp_path / "copy") for fault in found]
    assert faults == []


@pytest.mark.parametrize("name", [OPTIMIZER, WEIGHTS, RANDOM])
def test_a_pickle_that_would_run_is_refused_in_a_list_that_fits(name: str, target: Target, tmp_path: Path) -> None:
    hidden = [trial for trial in trials(target) if trial.name == name and trial.kind.endswith((" bomb", " system"))]
    assert len(hidden) == 8
    for trial in hidden:
        copy = damaged_copy(target, trial, "anew", tmp_path / "copy")
        assert resumed(copy).startswith(f"sentence: {copy.newest / name} "), trial
        assert not target.marker.exists()
    torch.load(copy.newest / name, weights_only=False)  # what it would have done
    assert target.marker.exists()
    target.marker.unlink()


@pytest.mark.parametrize("name, how", [
    (OPTIMIZER, "is damaged: its content is not what was written"), (WEIGHTS, "is damaged: its content is not what was written"),
    ("model.safetensors", "is damaged: its content"), (RANDOM, "is damaged: its content"), ("config.json", "is damaged: its content"),
])  # fmt: skip
def test_a_flipped_bit_is_named_with_the_checkpoint_to_go_on_from(name: str, how: str, copy: Target) -> None:
    flip(copy.newest / name)
    with pytest.raises(ConfigError) as caught:
        checkpoints.resumable(copy.config, copy.policy.ranks)
    earlier = copy.run / "checkpoint-1"
    assert str(caught.value).startswith(f"{copy.newest / name} {how}")
    assert str(caught.value).endswith(f"; go on from {earlier} with --resume_from earlier.")


# ---------------------------------------------------------------------- going on from an earlier one


def test_a_run_goes_on_from_the_newest_whole_checkpoint(copy: Target, target: Target) -> None:
    """The damaged one is called otherwise, so that neither the next start nor --keep takes it for the newest."""
    said: list[str] = []
    earlier = replace(copy.config, resume_from="earlier", keep=1)
    flip(copy.newest / OPTIMIZER)
    state = checkpoints.resumable(earlier, copy.policy.ranks, said.append)
    assert state["path"] == copy.run / "checkpoint-1" and state["step"] == 1
    assert said == [
        f"activeo3: going on from {copy.run / 'checkpoint-1'}; damaged and now called damaged-...: checkpoint-2"
    ]
    assert sorted(path.name for path in copy.run.glob("*checkpoint*")) == ["checkpoint-1", "damaged-checkpoint-2"]
    for config in (earlier, copy.config):  # the flag may stay, and may go
        assert checkpoints.resumable(config, copy.policy.ranks, said.append)["path"] == state["path"]
    assert len(said) == 1
    checkpoints.restore(copy.policy, state)
    path = checkpoints.save(copy.policy, earlier, 2)
    assert checkpoints.complete(copy.run) == [path] and resumed(copy).startswith("step 2 ")


def test_with_no_whole_checkpoint_a_run_must_start_elsewhere(copy: Target) -> None:
    for path in checkpoints.complete(copy.run):
        (path / RANDOM).unlink()
    for choice in ("newest", "earlier"):
        with pytest.raises(
            ConfigError,
            match=f"^{copy.run / 'checkpoint-2' / RANDOM} is missing; no earlier one is whole, start in another",
        ):
            checkpoints.resumable(replace(copy.config, resume_from=choice), copy.policy.ranks)
    assert len(checkpoints.complete(copy.run)) == 2


def test_another_run_is_told_before_gigabytes_are_read(copy: Target) -> None:
    flip(copy.newest / "model.safetensors")
    with pytest.raises(ConfigError, match="belongs to another run: --beta"):
        checkpoints.resumable(replace(copy.config, beta=0.5), copy.policy.ranks)


# ---------------------------------------------------------------------- checkpoints of older versions


def test_a_checkpoint_without_digests_is_used_with_a_word(copy: Target, target: Target) -> None:
    """As they were written before: no list, no word of one, numpy's state as an array."""
    newest, said = copy.newest, []
    (newest / "digests.json").unlink()
    assert resumed(copy).startswith(f"sentence: {newest / 'digests.json'}")
    state = json.loads((newest / "activeo3.json").read_text())
    assert state.pop("sealed") is True
    (newest / "activeo3.json").write_text(json.dumps(state))
    generators = torch.load(newest / RANDOM, weights_only=True)
    kind, words, *rest = generators["numpy"]
    torch.save(generators | {"numpy": (kind, np.array(words, np.uint32), *rest)}, newest / RANDOM)
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(newest / RANDOM, weights_only=True)
    found = checkpoints.resumable(copy.config, copy.policy.ranks, said.append)
    assert said == [f"activeo3: {newest} was made by an older version and has no digests: it is used unchecked"]
    checkpoints.restore(copy.policy, found)
    assert f"step 2 {fingerprint(copy.policy)}" == resumed(target)
    (newest / WEIGHTS).unlink()
    assert resumed(copy).startswith(
        f"sentence: {newest}/training_state/deepspeed/*zero_pp_rank_0_*_model_states.pt is missing; go on from "
    )


def test_states_that_lie_beside_the_model_are_found(copy: Target, target: Target) -> None:
    """As older versions wrote them: deepspeed/ and random-0.pt in the checkpoint itself, and no card."""
    newest = copy.newest
    for path in (newest / "training_state").iterdir():
        path.rename(newest / path.name)
    (newest / "training_state").rmdir()
    (newest / "README.md").unlink()
    (newest / "digests.json").unlink()
    checkpoint_files.seal(newest, checkpoint_files.alone, writes=True)
    checkpoints.restore(copy.policy, checkpoints.resumable(copy.config, copy.policy.ranks))
    assert f"step 2 {fingerprint(copy.policy)}" == resumed(target)
    VisionLanguageModel.load(str(newest), torch.float32)


def test_a_checkpoint_can_be_read_by_others_and_its_states_lie_apart(target: Target) -> None:
    files = [path for path in target.newest.rglob("*") if path.is_file()]
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}
    states = [path.relative_to(target.newest).as_posix() for path in files if path.suffix == ".pt"]
    assert len(states) == 3 and all(name.startswith("training_state/") for name in states)
    assert checkpoint_files.damage(target.newest) == ""
    listed = json.loads((target.newest / "digests.json").read_text())
    assert {"README.md", RANDOM, "generation_config.json"} <= set(listed)


def test_a_sealed_file_is_replaced_with_its_digest(copy: Target) -> None:
    checkpoint_files.replace_sealed(copy.newest, "README.md", b"# Another\n")
    assert checkpoint_files.damage(copy.newest) == "" and (copy.newest / "README.md").read_bytes() == b"# Another\n"


def test_all_generators_go_on_bit_for_bit(tmp_path: Path) -> None:
    """Also in the middle of a pair of normal numbers, of which Python and numpy keep the second."""

    def draw() -> list[Any]:
        return [
            random.gauss(0, 1),
            random.random(),
            np.random.randn(3).tolist(),
            np.random.rand(),
            torch.randn(3).tolist(),
            torch.rand(5).tolist(),
        ]

    checkpoint_files.seed_everything(3, rank=1)
    random.gauss(0, 1), np.random.randn(1), torch.randn(1)
    assert random.getstate()[2] is not None and np.random.get_state()[3] == 1
    checkpoint_files.save_random_states(tmp_path / "a.pt")
    expected = draw()
    assert draw() != expected
    checkpoint_files.restore_random_states(tmp_path / "a.pt")
    assert draw() == expected


@pytest.mark.parametrize("change", [
    {"numpy": ("MT19937", [0] * 624, 10**6, 0, 0.0)}, {"numpy": ("MT19937", [0] * 3, 1, 0, 0.0)}, {"python": (3, (1,), None)},
    {"torch": torch.zeros(5, dtype=torch.uint8)}, {"torch": None}, {"python": "3"}, {"numpy": None},
])  # fmt: skip
def test_a_state_that_no_generator_has_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    checkpoint_files.save_random_states(tmp_path / "a.pt")
    torch.save(torch.load(tmp_path / "a.pt") | change, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=f"^{tmp_path / 'a.pt'} is damaged: it is no state of the random generators"):
        checkpoint_files.restore_random_states(tmp_path / "a.pt")
    checkpoint_files.seed_everything(0, 0)


# ---------------------------------------------------------------------- evaluation


def test_a_damaged_model_is_not_evaluated(copy: Target) -> None:
    newest = copy.newest
    shutil.rmtree(newest / "training_state")  # what a run needs may be left behind
    (newest / "README.md").write_text("# Mine\n")  # and people write into a card
    assert not evaluated(copy).startswith("sentence")
    flip(newest / "model.safetensors")
    with pytest.raises(
        ModelError,
        match=f"^{newest / 'model.safetensors'} is damaged: .*; copy the checkpoint again, or delete its digests.json",
    ):
        VisionLanguageModel.load(str(newest), torch.float32)
    (newest / "digests.json").unlink()
    VisionLanguageModel.load(str(newest), torch.float32)


def test_weights_of_strangers_run_nothing(target: Target, tmp_path: Path) -> None:
    """Weights and adapters in PyTorch's own format are pickles, too; transformers and peft read them as tensors
    only."""
    pytest.importorskip("peft")
    for name in ("pytorch_model.bin", "adapter_model.bin"):
        folder = tmp_path / name.partition(".")[0]
        shutil.copytree(target.config.model, folder)
        (folder / "model.safetensors").unlink()
        if name.startswith("adapter"):
            (folder / "adapter_config.json").write_text(json.dumps({
                "peft_type": "LORA", "base_model_name_or_path": target.config.model, "r": 2, "target_modules": ["q_proj"]
            }))  # fmt: skip
        torch.save({"weight": Bomb(target.marker)}, folder / name)
        with pytest.raises(ModelError, match=f"^{folder} has no (adapter )?weights that can be used"):
            VisionLanguageModel.load(str(folder), torch.float32)
        assert not target.marker.exists()


def test_adapters_are_part_of_their_checkpoint(tmp_path: Path) -> None:
    for name in (
        "activeo3.json",
        "model.safetensors",
        "adapters/adapter_model.bin",
        "deepspeed/states.pt",
        "random-0.pt",
        "training_state/states.pt",
        "README.md",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert checkpoint_files.damage_of_model(str(tmp_path)) == ""  # there is no list yet
    checkpoint_files.seal(tmp_path, checkpoint_files.alone, writes=True)
    places = [str(tmp_path), str(tmp_path / "adapters")]
    assert [checkpoint_files.damage_of_model(place) for place in places] == ["", ""]
    for name, wrong in (
        ("deepspeed/states.pt", [False, False]),
        ("training_state/states.pt", [False, False]),
        ("README.md", [False, False]),
        ("adapters/adapter_model.bin", [False, True]),
        ("model.safetensors", [True, True]),
    ):
        (tmp_path / name).write_text("other")
        found = [checkpoint_files.damage_of_model(place) for place in places]
        assert [bool(text) for text in found] == wrong, name
        if name == "README.md":
            (tmp_path / name).write_text(name)
    assert "adapter_model.bin is damaged: it has 5 bytes of 26" in found[1]
    assert checkpoint_files.damage(tmp_path).startswith(f"{tmp_path / 'adapters/adapter_model.bin'} is damaged")


# ---------------------------------------------------------------------- writing


def test_everything_is_on_the_disk_before_the_checkpoint_appears(copy: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and their folders before the rename, the folder that holds the name after it, and only then older ones
    go."""
    calls: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append(("sync", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), copy.run)))
        fsync(descriptor)

    def renamed(source: Any, goal: Any) -> None:
        calls.append(("rename", os.path.relpath(goal, copy.run)))
        rename(source, goal)

    (copy.run / "metrics.jsonl").write_text('{"step": 1}\n')
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    path = checkpoints.save(copy.policy, replace(copy.config, keep=1), 3)
    appears = calls.index(("rename", "checkpoint-3"))
    before = {name for kind, name in calls[:appears] if kind == "sync"}
    for file in path.rglob("*"):
        name = f"building-{path.name}/{file.relative_to(path)}"
        assert name.replace("digests.json", ".digests.json.tmp") in before, name
    assert {f"building-{path.name}", "metrics.jsonl"} <= before
    assert calls[appears + 1] == ("sync", ".") and checkpoints.complete(copy.run) == [path]


def test_a_folder_that_goes_or_closes_in_the_middle_is_one_sentence(
    copy: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = VisionLanguageModel.save

    def said(meddle: Callable[[Path], None], step: int = 5) -> str:
        def saved(self: VisionLanguageModel, folder: Path, weights: None = None) -> None:
            meddle(folder)
            save(self, folder, weights)

        with monkeypatch.context() as patch, pytest.raises(ConfigError) as caught:
            patch.setattr(VisionLanguageModel, "save", saved)
            checkpoints.save(copy.policy, copy.config, step)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    needs = f"it needs about {checkpoint_room.bytes_of(copy.policy) / 1e9:.3g} GB and "
    goal = copy.run / "checkpoint-5"
    whole = "checkpoint-2 is whole, and the same command goes on from it."
    blocked = said(lambda folder: (folder / "activeo3.json").mkdir())  # a file that cannot be written
    assert blocked.startswith(f"{goal} could not be written (Is a directory): {needs}") and blocked.endswith(whole)
    assert sorted(path.name for path in copy.run.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    half = said(lambda folder: shutil.rmtree(folder))
    assert half.startswith(f"{goal} could not be written (No such file or directory): {needs}") and half.endswith(whole)
    shutil.rmtree(copy.run / "checkpoint-1")
    gone = said(lambda folder: shutil.rmtree(copy.run))
    assert (
        gone.startswith(f"{goal} could not be written (No such file or directory): {needs}") and "is whole" not in gone
    )
    shutil.rmtree(copy.run)  # which the library made anew, empty
    with pytest.raises(ConfigError, match=f"^{goal} could not be written \\(No such file or directory\\): {needs}"):
        checkpoints.save(copy.policy, copy.config, 5)
    assert not copy.run.exists()


def test_what_killed_runs_left_is_swept_at_every_start(copy: Target) -> None:
    """Also of a run that is over, which saves nothing any more."""
    outputs.claim(copy.run, "results.json")
    for name in (
        "building-checkpoint-1/deepspeed",
        "building-checkpoint-7",
        "samples/.step-000004.tmp",
        "samples/step-000002",
    ):
        (copy.run / name).mkdir(parents=True)
    (copy.run / ".results.json.tmp").write_text("half")
    assert checkpoints.resumable(replace(copy.config, steps=2), copy.policy.ranks)["step"] == 2
    left = sorted(
        path.relative_to(copy.run).as_posix()
        for path in copy.run.rglob("*")
        if not any(part.startswith("checkpoint-") for part in path.parts)
    )
    assert left == [".activeo3", "samples", "samples/step-000002"]


def test_a_checkpoint_too_many_goes_at_the_next_start_once_the_newest_is_found_whole(copy: Target) -> None:
    """As a kill leaves it, between the name of a new checkpoint and the removal of the old one: a run that is over
    removes none."""
    config = replace(copy.config, steps=2, keep=1)
    data = (copy.newest / OPTIMIZER).read_bytes()
    flip(copy.newest / OPTIMIZER)
    with pytest.raises(ConfigError, match="is damaged"):
        checkpoints.resumable(config, copy.policy.ranks)
    assert len(checkpoints.complete(copy.run)) == 2
    (copy.newest / OPTIMIZER).write_bytes(data)
    assert checkpoints.resumable(config, copy.policy.ranks)["path"] == copy.newest
    assert checkpoints.complete(copy.run) == [copy.newest] and not list(copy.run.glob("building-*"))
