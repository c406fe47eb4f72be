"""Sections of gpu.py that need a model: equality, decoding, the update, the vision tower, and whole runs under
DeepSpeed."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import floor
import numpy as np
import torch
from PIL import Image
from probe import CUDA, DEVICE, Probe, cudnn_attention, kernels, ms, once, peak, sync
from setting import SIZES, random_model
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from activeo3 import engine, memory
from activeo3.attention import FLEX, TOGETHER, TWO_CALLS, of_towers, see_together
from activeo3.config import TrainConfig
from activeo3.engine import Zero3Model
from activeo3.grpo import answer_logps
from activeo3.model import VisionLanguageModel
from activeo3.packing import Branch, Prompt, sampler_logps
from activeo3.task_models import Crop, crop_view
from activeo3.tasks import task_of
from activeo3.types import Example, Region, Sampling
from activeo3.vision import multiply_patches

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402

Answers = list[list[tuple[int, ...]]]


def build(size: str, dtype: torch.dtype, attention: str = "auto") -> VisionLanguageModel:
    """A random Qwen2.5-VL as it is loaded, made on the device; its answers do not end early."""
    model, tokenizer, processor = random_model(size, dtype, DEVICE)
    names = of_towers(attention, dtype)
    model.set_attn_implementation({"text_config": names["text_config"]})
    model.config.vision_config._attn_implementation = names["vision_config"]
    multiply_patches(model)
    see_together(model, attention)
    vlm = VisionLanguageModel(model.eval(), tokenizer, processor)
    vlm.suppressed_ids = (*vlm.suppressed_ids, *vlm.end_tokens)
    return vlm


def views(count: int, tokens_high: int, tokens_wide: int) -> list[Image.Image]:
    """Pictures of so many visual tokens by so many."""
    size = (tokens_high * 28, tokens_wide * 28, 3)
    return [Image.fromarray(np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)) for i in range(count)]


def answers_of(vlm: VisionLanguageModel, rows: int, group: int, tokens: int, ragged: bool = True) -> Answers:
    """Random answers, of unequal lengths if ragged."""
    generator = torch.Generator().manual_seed(3)
    most = min(vlm.model.config.get_text_config().vocab_size, 150_000)
    lengths = [[tokens - (b * 3 % (tokens // 2) if ragged else 0) for b in range(group)] for _ in range(rows)]
    return [[tuple(torch.randint(10, most, (n,), generator=generator).tolist()) for n in row] for row in lengths]


def equal(probe: Probe) -> None:
    """Packed rows against plain rows, log-probabilities and gradients: all else rests on it, and here the kernels are
    others."""
    size, high, wide, T = ("3b-slice", 20, 26, 48) if not probe.tiny else ("toy", 16, 18, 12)

    def packed_run(vlm: VisionLanguageModel, prompts: list[Prompt], answers: Answers) -> torch.Tensor:
        packed = vlm.pack(prompts, answers)
        logps, _ = answer_logps(
            vlm.forward_packed(packed),
            packed.tokens,
            packed.columns,
            1.0,
            (),
            packed.logit_columns,
            packed.completion_mask,
        )
        return logps[packed.completion_mask]

    def plain_run(vlm: VisionLanguageModel, prompts: list[Prompt], answers: Answers) -> torch.Tensor:
        found = []
        for prompt, row in zip(prompts, answers):
            for ids in row:
                text = torch.cat([prompt.ids, torch.tensor(ids)])[None].to(DEVICE)
                logits = vlm.model(
                    input_ids=text, attention_mask=torch.ones_like(text), mm_token_type_ids=(text == vlm.image_token).long(),
                    pixel_values=prompt.pixels.to(DEVICE, vlm.model.dtype), image_grid_thw=prompt.grids.to(DEVICE),
                    logits_to_keep=len(ids) + 1, use_cache=False,
                ).logits[0, :-1]  # fmt: skip
                vlm.model.model.rope_deltas = None
                found.append(logits.float().log_softmax(-1).gather(-1, text[0, -len(ids) :, None])[:, 0])
        return torch.cat(found)

    def run(vlm, way):
        vlm.model.zero_grad(set_to_none=True)
        logps = way(vlm, prompts, answers)
        weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        (weights * logps).sum().backward()
        return logps.detach(), {
            name: p.grad.float().clone() for name, p in vlm.model.named_parameters() if p.grad is not None
        }

    def apart(one, other):
        norms = {name: float(g.norm()) for name, g in other[1].items()}
        floor = 1e-3 * max(norms.values())
        worst = max((float((one[1][name] - g).norm()) / max(norms[name], floor), name) for name, g in other[1].items())
        return dict(logp_max=float((one[0] - other[0]).abs().max()), logp_mean=float((one[0] - other[0]).abs().mean()),
                    gradient_worst=worst[0], where=worst[1][-40:])  # fmt: skip

    vlm = build(size, torch.float32)
    prompts = vlm.encode(
        views(1, high, wide) + views(1, high - 3, wide),
        ["Where could a red star be?", "A longer question: where could it be?"],
    )
    answers = answers_of(vlm, 2, 4, T)
    exact = None
    with probe.trying("packed is plain, float32"):
        exact = run(vlm, plain_run)
        probe.note("packed against plain rows, float32", **apart(run(vlm, packed_run), exact))
    state = {name: t.to(torch.bfloat16) for name, t in vlm.model.state_dict().items()}
    del vlm
    half = build(size, torch.bfloat16)
    half.model.load_state_dict(state)
    for off in (False, True) if CUDA else (True,):
        cudnn_attention(not off)
        with probe.trying("bfloat16"):
            plain, packed = run(half, plain_run), run(half, packed_run)
            tag = "cuDNN off" if off else "cuDNN on"
            probe.note(f"bfloat16, packed against plain rows, {tag}", **apart(packed, plain))
            if exact:
                probe.note(f"bfloat16 plain rows against float32, {tag}", **apart(plain, exact))
                probe.note(f"bfloat16 packed rows against float32, {tag}", **apart(packed, exact))
    cudnn_attention(False)
    if CUDA:
        with probe.trying("flex"):
            half.model.set_attn_implementation({"text_config": FLEX})
            began = time.perf_counter()
            flex = run(half, packed_run)
            probe.note(
                "FlexAttention, bfloat16, against plain rows",
                seconds_first=time.perf_counter() - began,
                **apart(flex, plain),
            )


def decode(probe: Probe) -> None:
    """What a token costs by both decoders, whether they write the same, and whether sampler and scorer agree."""
    size = "3b" if not probe.tiny else "toy"
    vlm = build(size, torch.bfloat16)
    T = 64 if not probe.tiny else 12
    shape = (36, 36) if not probe.tiny else (6, 7)
    words = ["Where could a red star be?", "Where could a red star be, or two of them?"]
    weights = 2 * sum(p.numel() for p in vlm.model.model.language_model.parameters())
    probe.note("weights read per token", gb=weights / 1e9)
    one, two = vlm.encode(views(1, *shape), words[:1]), vlm.encode(views(2, *shape), words)
    for off in (False, True) if CUDA else (True,):
        cudnn_attention(not off)
        for decoder, (name, prompts, group) in product(
            ("hf", "graph"), (("8 rows", one, 8), ("32 rows", one, 32), ("16 rows, padded", two, 8))
        ):
            with probe.trying(f"{decoder}, {name}"):
                run = lambda n: once(lambda: vlm.generate(prompts, group, Sampling(1.0, n, decoder)))  # noqa: E731, B023
                run(8)  # warm
                short, long = run(1), run(T + 1)
                probe.note(
                    f"--decoder {decoder}, {name}, {'cuDNN off' if off else 'cuDNN on'}",
                    ms_per_token=1e3 * (long - short) / T,
                    prefill_and_one_ms=1e3 * short,
                )
    cudnn_attention(False)
    with probe.trying("kernels a token"), torch.no_grad():
        rows = vlm._prefilled([one], 8)
        vlm._decode(rows, 4, Sampling(1.0, 99))
        few, many = (
            kernels(lambda: vlm._decode(rows, 2, Sampling(1.0, 99))),
            kernels(lambda: vlm._decode(rows, 10, Sampling(1.0, 99))),
        )
        probe.note("of one token, 8 rows", kernels=(sum(c for _, c, _ in many) - sum(c for _, c, _ in few)) / 8,
             device_ms=(sum(t for *_, t in many) - sum(t for *_, t in few)) / 8e3)  # fmt: skip
    for name, prompts, temperature in (("greedy", one, 0.0), ("sampled", one, 1.0), ("sampled, padded", two, 1.0)):
        with probe.trying(f"both decoders, {name}"):
            torch.manual_seed(0)
            graph = vlm.generate_multi_turn(prompts, 8, Sampling(temperature, T, "graph"))
            torch.manual_seed(0)
            hf = vlm.generate_multi_turn(prompts, 8, Sampling(temperature, T, "hf"))
            pairs = [pair for ours, theirs in zip(graph, hf) for pair in zip(ours, theirs)]
            same = [a == b for ours, theirs in pairs for a, b in zip(ours.answer, theirs.answer)]
            probe.note(f"tokens of both decoders, {name}", same=sum(same) / len(same))
    with probe.trying("sampler against scorer"), torch.no_grad():
        branches = vlm.generate_multi_turn(one, 8, Sampling(1.0, T))
        packed = vlm.pack(one, branches)
        scored, entropy = answer_logps(
            vlm.forward_packed(packed),
            packed.tokens,
            packed.columns,
            1.0,
            vlm.suppressed_ids,
            packed.logit_columns,
            packed.completion_mask,
        )
        gap = (sampler_logps(branches).to(DEVICE) - scored)[packed.completion_mask].abs()
        probe.note("sampler's log-probabilities less the scorer's", mean_abs=float(gap.mean()), max_abs=float(gap.max()),
                   mean_ratio=float(gap.exp().mean()), entropy=float(entropy[packed.completion_mask].mean()))  # fmt: skip


def default(probe: Probe) -> None:
    """The README's command on this machine, and whether a run goes on."""
    few, small = (
        ["--eval_examples", "0", "--samples_every", "0"],
        ["--prompts", "1", "--micro_prompts", "1", "--group", "2"],
    )
    runs = {
        "bfloat16": ["--steps", "4", "--save_every", "2", "--output_dir", f"{probe.out}/run"],
        "resumed": ["--steps", "6", "--save_every", "2", "--output_dir", f"{probe.out}/run"],
        "recompute, two micro-batches": [
            "--steps",
            "2",
            "--output_dir",
            f"{probe.out}/run-re",
            "--recompute",
            "true",
            "--micro_prompts",
            "2",
        ],
        "float32": ["--steps", "2", "--output_dir", f"{probe.out}/run-32", "--dtype", "float32"],
    }
    if probe.tiny:
        runs = {"tiny": ["--steps", "1", *small, "--output_dir", f"{probe.out}/run"]}
    for number, (name, flags) in enumerate(runs.items()):
        launcher = [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--master_port",
            str(29000 + (os.getpid() + number) % 900),
        ]
        began, done = time.perf_counter(), None
        with probe.trying(f"deepspeed train.py, {name}"):
            done = subprocess.run(
                [*launcher, "train.py", *flags, *few], cwd=ROOT, capture_output=True, text=True, timeout=300
            )
        if done is None or done.returncode:
            probe.note(f"deepspeed train.py, {name}", failed=(done.stdout + done.stderr)[-600:] if done else "no time")
            continue
        lines = (Path(flags[flags.index("--output_dir") + 1]) / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        kept = ("reward", "kl", "ratio_max", "logp_difference/mean", "logp_difference/max", "entropy", "grad_norm", "skipped_steps", "memory_gb",
                "time/rollout", "time/task_model", "time/update", "time/step")  # fmt: skip
        probe.note(
            f"deepspeed train.py, {name}",
            seconds=time.perf_counter() - began,
            steps=len(lines),
            **{k: last.get(k) for k in kept},
        )


def zero3(probe: Probe) -> None:
    """Policy and reference under ZeRO-3 in this process: memory against the planner, and what hooks and gathers
    cost."""
    room = torch.cuda.get_device_properties(0).total_memory / 1e9 if CUDA else 0
    size = "toy" if probe.tiny else "3b" if room > 120 else "3b-half"
    P, G, T, shape = (2, 8, 100, (36, 36)) if not probe.tiny else (2, 2, 6, (6, 7))
    run = Path(probe.out) / "zero3"
    ranks = engine.start(run)
    config = TrainConfig(output_dir=str(run), prompts=P, micro_prompts=1, group=G, max_new_tokens=T, train_only="", recompute=True, lr=1e-6,
                         dtype="bfloat16", crop_side=840 if not probe.tiny else 112, task_max_new_tokens=32 if not probe.tiny else 4)  # fmt: skip
    began = time.perf_counter()
    policy = Zero3Model(build(size, torch.bfloat16), ranks, config, learns=True)
    sync()
    standing = torch.cuda.memory_allocated() / 1e9 if CUDA else 0.0
    n, vlm = policy.vlm.parameters, policy.vlm
    probe.note("policy under ZeRO-3", size=size, billion=n / 1e9, seconds=time.perf_counter() - began, gb_before_a_step=standing,
         gb_planned_after_one=memory.standing(n, n) / 1e9, inv_freq=str(vlm.model.model.language_model.rotary_emb.inv_freq.dtype))  # fmt: skip
    reference = Zero3Model(build(size, torch.bfloat16), ranks, replace(config, recompute=False), learns=False)

    def whole(model):
        with model.gathered():
            pass

    probe.note("gathered() and back, one rank", ms=ms(lambda: whole(policy), 3, 1))
    prompts = vlm.encode(views(P, *shape), ["Where could a red star be?"] * P)
    answers = [
        [SimpleNamespace(token_ids=ids, branch=Branch((ids,), (), (-1.0,) * T)) for ids in row]
        for row in answers_of(vlm, P, G, T, False)
    ]
    advantage = torch.randn(P, G, device=DEVICE)
    packed = vlm.pack(prompts[:1], [[a.token_ids for a in answers[0]]])
    with torch.no_grad():
        with probe.trying("hooks"):
            hooked = ms(lambda: reference.logits(packed), 3, 2)
            whole(reference)
            after = once(lambda: reference.logits(packed)) * 1e3
            with reference.gathered() as bare:
                without = ms(lambda: bare.forward_packed(packed), 3, 1)
            probe.note(
                "reference on one packed row",
                hooks_ms=hooked,
                hooks_first_after_gathered_ms=after,
                without_hooks_ms=without,
            )

    def train_once():
        return train.update(1, prompts, answers, advantage, policy, reference, task_of(config), config)

    with probe.trying("update"):
        first = once(train_once)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        found, times = {}, []
        for _ in range(2):
            times.append(once(lambda: found.update(train_once())))
        most = torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0
        probe.note("train.update", prompts=P, group=G, tokens=T, first_s=first, seconds=min(times), peak_gb=most,
             standing_gb=torch.cuda.memory_allocated() / 1e9 if CUDA else 0.0,
             reserved_gb=torch.cuda.max_memory_reserved() / 1e9 if CUDA else 0.0,
             retries=torch.cuda.memory_stats().get("num_alloc_retries", 0) if CUDA else 0,
             **{k: found[k] for k in ("kl", "ratio_max", "grad_norm", "skipped_steps", "entropy")})  # fmt: skip
    with probe.trying("act"):
        image = views(1, 30, 40)[0] if not probe.tiny else views(1, 6, 8)[0]
        example = Example("x", image, "red star", np.zeros((0, 4)))
        count = 24 if not probe.tiny else 3
        looks = [Crop(example, Region(3.0 + i, 5.0, 90.0 + 2 * i, 120.0)) for i in range(count)]
        with reference.gathered() as task_model:
            task_model.find(looks, config)
            for batch in (16, 32):
                seconds = once(lambda: task_model.find(looks, replace(config, task_batch=batch)))
                probe.note(
                    f"act: {count} crops, {config.task_max_new_tokens} tokens each, task_batch {batch}", seconds=seconds
                )
            cut = once(lambda: [crop_view(task_model, image, look.window, config) for look in looks])
            cropped = [crop_view(task_model, image, look.window, config)[0] for look in looks]
            patched = once(lambda: task_model.encode(cropped, ["Find every red star."] * count))
            probe.note(f"of that on the CPU, {count} crops", crop_s=cut, patches_s=patched)
    engine.stop()


def update(probe: Probe) -> None:
    """Reference and update of packed rows without DeepSpeed, by attention and recompute: times, MFU, memory against the
    planner."""
    size, shape, G, T = ("3b", (36, 36), 8, 100) if not probe.tiny else ("toy", (16, 17), 2, 8)
    vlm = build(size, torch.bfloat16)
    rate = 790e12 if CUDA else 1e12
    V, hidden, mlp, layers, heads, kv, tied, depth, *_ = SIZES[size]
    sizes = memory.KNOWN["3B"] if size == "3b" else memory.Sizes.of(vlm.model.config.to_dict())
    for high, wide, tokens in ((*shape, T), (*shape, 3 * T), (shape[0], shape[1] + 5, T)):
        prompts = vlm.encode(views(1, high, wide), ["Where could a red star be?"])
        answers = answers_of(vlm, 1, G, tokens, False)
        patches, row = int(prompts[0].grids.prod()), len(prompts[0].ids) + G * tokens
        prefix = len(prompts[0].ids)
        flops = floor.text_flops(sizes, prefix, 0, 1) + G * floor.text_flops(sizes, tokens, prefix, tokens)
        flops += floor.vision_flops(sizes, patches)
        kinds = [(TWO_CALLS, False, True), (TWO_CALLS, True, True)]  # attention, recompute, without cuDNN's attention
        for attend, recompute, off in kinds + [(TWO_CALLS, False, False), (FLEX, False, True)] * CUDA:
            cudnn_attention(not off)
            name = f"{'flex' if attend == FLEX else 'sdpa'}{', recompute' * recompute}{', cuDNN off' * off}, row {row}, {patches} patches"
            with probe.trying(name):
                vlm.model.set_attn_implementation({"text_config": attend})
                if recompute:
                    vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
                    vlm.model.train()
                packed = vlm.pack(prompts, answers)

                def forward():
                    logits = vlm.forward_packed(packed)
                    return answer_logps(
                        logits,
                        packed.tokens,
                        packed.columns,
                        1.0,
                        vlm.suppressed_ids,
                        packed.logit_columns,
                        packed.completion_mask,
                    )[0]

                def step():
                    forward().sum().backward()
                    vlm.model.zero_grad(set_to_none=True)

                def look():
                    with torch.no_grad():
                        forward()

                first = once(step)
                took, looked = ms(step, 3, 1), ms(look, 3, 1)
                # without the gradients, which stand in the planner's "policy"
                saved, whole = peak(lambda: forward().sum()), peak(step)
                planned = memory.activations(sizes, patches, row, recompute) / 1e9
                probe.note(name, first_s=first, update_ms=took, reference_ms=looked, update_tflops=3 * flops / took / 1e9, mfu=3 * flops / (took / 1e3) / rate,
                     peak_gb_of_forward=saved, peak_gb_with_gradients=whole, planned_activations_gb=planned, planned_logits_gb=8 * G * tokens * sizes.vocabulary / 1e9)  # fmt: skip
            vlm.model.gradient_checkpointing_disable()
            vlm.model.eval()
    cudnn_attention(False)


def vision(probe: Probe) -> None:
    """The vision tower on one view and on crops, by attention; and what the CPU does before it."""
    size = "3b" if not probe.tiny else "toy"
    SIZES["eyes"] = (*SIZES[size][:3], 1, *SIZES[size][4:])  # one layer of the text tower
    vlm = build("eyes", torch.bfloat16)
    tower = vlm.model.config.vision_config
    sets = {"one view of 36 x 48 tokens": views(1, 36, 48), "24 crops of 30 x 30": views(24, 30, 30)}
    if probe.tiny:
        sets = {"one view of 4 x 6 tokens": views(1, 4, 6), "3 crops of 3 x 3": views(3, 3, 3)}
    for name, shown in sets.items():
        patched = once(lambda: vlm.encode(shown, ["?"] * len(shown)))
        prompts = vlm.encode(shown, ["?"] * len(shown))
        moved = once(lambda: vlm.vision_cache._pixels(prompts))
        pixels, grids = vlm.vision_cache._pixels(prompts), vlm.vision_cache._grids(prompts)
        probe.note(
            f"{name}, before the tower",
            patches_on_cpu_s=patched,
            cat_and_copy_s=moved,
            mb=sum(p.pixels.nbytes for p in prompts) / 1e6,
        )
        for way in (TOGETHER, "sdpa", "flash_attention_2", "flash_attention_3"):
            for off in (False, True) if CUDA and way == TOGETHER else (True,):
                cudnn_attention(not off)
                with probe.trying(f"{name}, {way}"):
                    if way.startswith("flash"):
                        if not (is_flash_attn_2_available() if way.endswith("2") else is_flash_attn_3_available()):
                            continue
                    tower._attn_implementation = way

                    def see():
                        with torch.no_grad():
                            return vlm.model.model.get_image_features(pixels, grids, return_dict=True)

                    first = once(see)
                    probe.note(
                        f"{name}, {way}{', cuDNN off' * (off and CUDA)}",
                        first_ms=1e3 * first,
                        ms=ms(see, 3, 1),
                        peak_gb=peak(see),
                    )
    cudnn_attention(False)
