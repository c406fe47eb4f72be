"""Damages every file of a checkpoint in every way, and goes on from it, and evaluates it.

    python -m tests.attack.checkpoints --trials 0 --seed 0        # all of them; N: so many, drawn at random
    python -m tests.attack.checkpoints --commands 20              # also so many through train.py and evaluate.py

Each file is cut, flipped in a bit, lengthened, emptied, deleted, made a folder or a pipe, and replaced by pickles that
run code when they are unpickled; the JSON files get values that are odd. Each is tried with the list of digests as it
was, with a new list (a stranger made the folder), and without one (as older versions wrote checkpoints). What must
hold:

  1. Nothing that a file names is run, and nothing raises but one sentence that names a file of the checkpoint.
  2. With the list as it was, the damage is found, or the result is that of the undamaged checkpoint, bit for bit.
  3. With the list as it was, the sentence names the earlier checkpoint, and --resume_from earlier goes on from it, bit
     for bit.
"""

import argparse
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from activeo3 import checkpoint_files, checkpoints, engine, eval_setup
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_io import DataError
from activeo3.engine import Distributed, Zero3Model
from activeo3.model import ModelError, VisionLanguageModel

ROOT = Path(__file__).parent.parent.parent
Listing = Literal["as it was", "anew", "none"]
LISTINGS: tuple[Listing, ...] = ("as it was", "anew", "none")
SENTENCES = (ConfigError, DataError, ModelError)
ODD = ("2", True, -1, 2.5, None, 10**30, [], {}, [1], "\u202e\x1b[2J", "9" * 300)


class Trial(NamedTuple):
    """One damage: to which file of the newest checkpoint, which, and how it is done to a copy."""

    name: str
    kind: str
    apply: Callable[[Path], None]

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}"


class Bomb:
    """Makes the file ``marker`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class System(Bomb):
    """The same by the shell."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@dataclass
class Target:
    """A run with two checkpoints, and the engine that goes on from them."""

    config: TrainConfig
    policy: Zero3Model
    marker: Path

    @property
    def run(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def newest(self) -> Path:
        return checkpoints.complete(self.run)[-1]


# ---------------------------------------------------------------------- damages


def trials(target: Target) -> Iterator[Trial]:
    """Every damage to every file."""
    for path in sorted(target.newest.rglob("*")):
        if path.is_file():
            name = path.relative_to(target.newest).as_posix()
            yield from _of_bytes(name, path.read_bytes())
            yield from _of_files(name)
            if path.suffix in (".pt", ".bin"):
                yield from _of_pickles(name, path, target.marker)
            if path.suffix == ".json":
                yield from _of_values(name, json.loads(path.read_text()))


def _of_bytes(name: str, data: bytes) -> Iterator[Trial]:
    """Cut, flipped, lengthened."""
    size = len(data)
    changed = {f"cut to {kept} of {size} bytes": data[:kept] for kept in (0, 1, size // 2, size - 1)}
    for place in sorted({0, 9, size // 4, size // 2, 3 * size // 4, size - 30, size - 1} & set(range(size))):
        for bit in (0, 6):
            changed[f"bit {bit} of byte {place} flipped"] = (
                data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            )
    changed |= {
        "a byte more": data + b"\0",
        "zeros": bytes(size),
        "page of zeros": data[: size // 2] + bytes(min(4096, size - size // 2)) + data[size // 2 + 4096 :],
    }
    for kind, content in changed.items():
        if content != data:
            yield Trial(name, kind, lambda path, content=content: path.write_bytes(content))


def _of_files(name: str) -> Iterator[Trial]:
    """Gone, or something else."""
    yield Trial(name, "deleted", lambda path: None)
    yield Trial(name, "a folder", lambda path: path.mkdir())
    yield Trial(name, "a pipe", lambda path: os.mkfifo(path))
    yield Trial(name, "a link to nowhere", lambda path: path.symlink_to("nowhere"))
    yield Trial(name, "a link to a device", lambda path: path.symlink_to("/dev/zero"))


def _of_pickles(name: str, path: Path, marker: Path) -> Iterator[Trial]:
    """Pickles that run code: bare, in torch's two formats, and hidden in the file as it was."""
    for bomb in (Bomb(marker), System(marker)):
        how = type(bomb).__name__.lower()
        yield Trial(name, f"pickle {how}", lambda p, b=bomb: p.write_bytes(pickle.dumps(b)))
        yield Trial(name, f"old torch {how}", lambda p, b=bomb: p.write_bytes(_saved({"module": b}, zipped=False)))
        yield Trial(name, f"torch {how}", lambda p, b=bomb: p.write_bytes(_saved(b)))
        state = torch.load(path, weights_only=False)
        yield Trial(name, f"hidden {how}", lambda p, s=state, b=bomb: p.write_bytes(_saved(s | {"more": b})))
    for kind, value in {"a list": [], "a number": 1, "no keys": {}, "a tensor": torch.zeros(3)}.items():
        yield Trial(name, kind, lambda p, v=value: p.write_bytes(_saved(v)))
    for key in torch.load(path, weights_only=False):
        for odd in (None, "text", -1, [], {}, torch.zeros(2), (1, 10**9, 0, 0, 0)):
            yield Trial(name, f"{key} is {odd!r}", lambda p, s=state, k=key, o=odd: p.write_bytes(_saved(s | {k: o})))


def _saved(value: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _of_values(name: str, content: Any) -> Iterator[Trial]:
    """Odd values of a JSON file: of all, of each key, and of each key of an object in it."""

    def trial(kind: str, changed: Any) -> Trial:
        return Trial(name, kind, lambda path: path.write_text(json.dumps(changed)))

    for odd in ODD:
        yield trial(f"json {odd!r}", odd)
    for key in content if isinstance(content, dict) and name != "tokenizer.json" else ():
        yield trial(f"no {key}", {k: v for k, v in content.items() if k != key})
        for odd in ODD:
            yield trial(f"{key} is {odd!r}", content | {key: odd})
        for inner in content[key] if isinstance(content[key], dict) else ():
            for odd in ODD:
                yield trial(f"{key}.{inner} is {odd!r}", content | {key: content[key] | {inner: odd}})
    yield Trial(name, "nested", lambda path: path.write_text("[" * 99_999))
    yield Trial(name, "twice", lambda path: path.write_text(json.dumps(content) * 2))
    yield Trial(name, "latin-1", lambda path: path.write_bytes('{"step": "é"}'.encode("latin-1")))


# ---------------------------------------------------------------------- what is tried with them


def damaged_copy(target: Target, trial: Trial, listing: Listing, folder: Path) -> Target:
    """The run in a new folder, with one file damaged and the list of digests as wanted; undamaged files are shared."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(target.run, folder, copy_function=os.link)
    copy = replace(target, config=replace(target.config, output_dir=str(folder)))
    newest = copy.newest
    path = newest / trial.name
    path.unlink()
    trial.apply(path)
    if listing != "as it was" and trial.name != checkpoint_files.DIGESTS:
        (newest / checkpoint_files.DIGESTS).unlink()
        _relist(newest, listing)
    return copy


def _relist(newest: Path, listing: Listing) -> None:
    """A list that fits to the damaged file, or none and no word of one."""
    if listing == "anew":
        return checkpoint_files.seal(newest, checkpoint_files.alone, True)
    path = newest / "activeo3.json"
    try:
        state = json.loads(path.read_text() if path.is_file() else "")
        state.pop("sealed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    path.unlink()
    path.write_text(json.dumps(state))


def resumed(target: Target, resume_from: str = "newest") -> str:
    """What a run is after it was put back to its newest checkpoint, as a digest with the step, or a sentence."""
    try:
        state = checkpoints.resumable(
            replace(target.config, resume_from=resume_from), target.policy.ranks, say=lambda text: None
        )
        if state is None:
            return "a fresh start"
        checkpoints.restore(target.policy, state)
    except SENTENCES as error:
        return f"sentence: {error}"
    return f"step {state['step']} {fingerprint(target.policy)}"


def evaluated(target: Target) -> str:
    """What an evaluation has of the newest checkpoint, as a digest, or a sentence."""
    source = str(target.newest)
    try:
        eval_setup.compared([source])
        vlm = VisionLanguageModel.load(source, torch.float32)
    except SENTENCES as error:
        return f"sentence: {error}"
    parts = [
        sorted(vlm.files.items()),
        vlm.tokenizer.chat_template,
        sorted(vlm.tokenizer.get_vocab().items()),
        vlm.image_processor.to_json_string(),
    ]
    return digest(parts, vlm.model.state_dict())


def fingerprint(policy: Zero3Model) -> str:
    """A digest of weights, optimizer and random generators."""
    optimizer = policy.engine.optimizer
    moments = {
        f"{i} {name}": value
        for i, state in enumerate(optimizer.optimizer.state.values())
        for name, value in state.items()
    }
    flat = {f"flat {i}": part for i, part in enumerate(optimizer.fp32_partitioned_groups_flat)}
    with policy.gathered() as whole:
        weights = dict(whole.model.state_dict())
    return digest(
        [random.getstate(), str(np.random.get_state()), policy.engine.skipped_steps],
        weights | flat | moments | {"rng": torch.get_rng_state()},
    )


def digest(plain: Any, tensors: dict[str, Any]) -> str:
    """A short digest of plain values and tensors."""
    found = hashlib.sha256(repr(plain).encode())
    for name in sorted(tensors):
        value = torch.as_tensor(tensors[name]).detach().cpu().contiguous()
        found.update(
            f"{name} {tuple(value.shape)} {value.dtype}".encode() + value.view(-1).view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()[:16]


# ---------------------------------------------------------------------- what must hold


def faults_of(target: Target, trial: Trial, listing: Listing, folder: Path, whole: dict[str, str]) -> list[str]:
    """What goes wrong with one damage; ``whole`` has the results of the undamaged run."""
    copy, faults = damaged_copy(target, trial, listing, folder), []
    for what, work in {
        "evaluate": evaluated,
        "resume": resumed,
    }.items():  # in this order: --resume_from earlier renames
        target.marker.unlink(missing_ok=True)
        try:
            found = work(copy)
        except Exception as error:
            faults.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            continue
        finally:
            if target.marker.exists():
                faults.append(f"{what}: code was run")
        faults += [f"{what}: {fault}" for fault in _wrong_with(what, found, copy, listing, whole)]
    return [f"{trial} (list {listing}) {fault}" for fault in faults]


def _wrong_with(what: str, found: str, copy: Target, listing: Listing, whole: dict[str, str]) -> Iterator[str]:
    """Rules 1 (the sentence), 2 and 3."""
    if not found.startswith("sentence: "):
        if listing == "as it was" and found != whole[what]:
            yield f"another result: {found}"
        return
    sentence = found.removeprefix("sentence: ")
    if "\n" in sentence or str(copy.run) not in sentence or len(sentence) > 800:
        yield f"no sentence that names a file: {sentence!r}"
    if what == "resume" and listing == "as it was":
        if "checkpoint-1 with --resume_from earlier" not in sentence:
            yield f"the earlier checkpoint is not named: {sentence}"
        if (earlier := resumed(copy, "earlier")) != whole["earlier"]:
            yield f"--resume_from earlier gives {earlier}"


def attack(
    target: Target, chosen: list[tuple[Trial, Listing]], folder: Path
) -> Iterator[tuple[Trial, Listing, list[str]]]:
    """The faults of each trial."""
    whole = {"resume": resumed(target), "evaluate": evaluated(target)}
    with_one = replace(target, config=replace(target.config, output_dir=str(folder)))
    shutil.copytree(target.run, folder, copy_function=os.link)
    shutil.rmtree(with_one.newest)
    whole["earlier"] = resumed(with_one)
    assert (
        whole["resume"].startswith("step 2 ")
        and whole["earlier"].startswith("step 1 ")
        and not whole["evaluate"].startswith("sentence")
    )
    for trial, listing in chosen:
        yield trial, listing, faults_of(target, trial, listing, folder, whole)


def make_target(ranks: Distributed, config: TrainConfig, marker: Path) -> Target:
    """A run of two updates on made-up losses, with a checkpoint after each."""
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    policy = Zero3Model(VisionLanguageModel.load(config.model, torch.float32), ranks, config, learns=True)
    for step in (1, 2):
        torch.manual_seed(step), random.gauss(0, 1), np.random.randn(1)
        words = torch.arange(20, 30)[None] + step
        loss = policy.engine(input_ids=words, attention_mask=torch.ones_like(words)).logits.square().mean()
        policy.backward(loss)
        policy.step(1e-3)
        checkpoints.save(policy, config, step)
    return Target(config, policy, marker)


# ---------------------------------------------------------------------- by the commands


def by_command(run: Path, trial: Trial, listing: Listing, folder: Path, target: Target) -> list[str]:
    """The same through train.py and evaluate.py: exit code 1, one sentence, no traceback; or 0."""
    copy, faults = damaged_copy(target, trial, listing, folder), []
    config = target.config
    flags = ["--model", config.model, "--ds_config", config.ds_config, *SMALL, "--steps", "3"]
    commands = {
        "train.py": [*flags, "--output_dir", str(folder)],
        "evaluate.py": [
            "--checkpoint",
            str(copy.newest),
            "--limit",
            "1",
            "--methods",
            "active",
            "--output_dir",
            str(folder / "eval"),
            *LOOKS,
        ],
    }
    for script, given in commands.items():
        target.marker.unlink(missing_ok=True)
        done = subprocess.run([sys.executable, script, *given], cwd=ROOT, capture_output=True, text=True, timeout=600)
        said = done.stderr.strip().splitlines()
        if (
            done.returncode not in (0, 1)
            or "Traceback" in done.stderr
            or done.returncode
            and not said[-1].startswith("activeo3: ")
        ):
            faults.append(f"{script}: exit code {done.returncode}, {' / '.join(said[-3:])}")
        if target.marker.exists():
            faults.append(f"{script}: code was run")
        if script == "train.py" and done.returncode == 0 and listing == "as it was":
            faults.append(f"{script}: went on from a damaged checkpoint")
    return [f"{trial} (list {listing}) {fault}" for fault in faults]


LOOKS = ["--max_new_tokens", "8", "--task_max_new_tokens", "8"]
SMALL = [
    "--prompts",
    "1",
    "--micro_prompts",
    "1",
    "--group",
    "2",
    "--save_every",
    "1",
    "--eval_examples",
    "0",
    "--samples_every",
    "0",
    *LOOKS,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=0, help="so many, drawn at random; 0: all")
    parser.add_argument("--commands", type=int, default=0, help="so many of them also through train.py and evaluate.py")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig.from_args([*SMALL, "--steps", "3", "--output_dir", f"{folder}/run"])
        target = make_target(engine.start(Path(folder) / "logs"), config, Path(folder) / "was-run")
        chosen = [(trial, listing) for trial in trials(target) for listing in LISTINGS]
        draw = random.Random(given.seed)
        print(f"{len(chosen)} trials", flush=True)
        if given.trials:
            chosen = draw.sample(chosen, given.trials)
        faults: list[str] = []
        for done, (trial, listing, found) in enumerate(attack(target, chosen, Path(folder) / "copy"), start=1):
            faults += found
            for fault in found:
                print(f"{done}: {fault}", flush=True)
            if done % 100 == 0:
                print(f"{done} trials, {len(faults)} faults", flush=True)
        for trial, listing in draw.sample(chosen, min(given.commands, len(chosen))):
            found = by_command(target.run, trial, listing, Path(folder) / "copy", target)
            faults += found
            print("\n".join(found) if found else f"command: {trial} (list {listing}) holds", flush=True)
    print(f"checkpoints {len(chosen) + given.commands} {len(faults)}")


if __name__ == "__main__":
    main()
