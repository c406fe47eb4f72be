"""model.py, generate.py and model.py by second opinion: shared prefill and packed rows against plain transformers,
one row at a time."""

import copy
from pathlib import Path
from typing import Callable, Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from activeo3 import model
from activeo3.attention import TWO_CALLS
from activeo3.decoding import truncate_at_eos
from activeo3.grpo import answer_logps
from activeo3.model import VisionLanguageModel
from activeo3.packing import Prompt
from activeo3.types import Sampling

Picture = Callable[..., Image.Image]
Make = Callable[..., VisionLanguageModel]
TEXTS = ("Find every red star.", "Where?", "Where could a white cross be, in the upper half of this picture?")
SIZES = ((64, 48), (80, 32), (32, 96))
LENGTHS = ((5, 2, 1, 7), (3, 6, 4, 2), (1, 1, 6, 3))  # T differs from the longest in most groups


def prompts_of(vlm: VisionLanguageModel, picture: Picture, count: int = 3) -> list[Prompt]:
    """Prompts that differ in picture size, text length and therefore in left padding."""
    views = [picture(*size, seed=i) for i, size in enumerate(SIZES[:count])]
    return vlm.encode(views, TEXTS[:count])


def answers_of(vlm: VisionLanguageModel, count: int = 3, seed: int = 0) -> list[list[tuple[int, ...]]]:
    """Random answers of unequal lengths; every second one ends with the end token."""
    generator = torch.Generator().manual_seed(seed)
    answers = []
    for lengths in LENGTHS[:count]:
        row = [torch.randint(10, 500, (length,), generator=generator).tolist() for length in lengths]
        answers.append([(*ids[:-1], vlm.end_token) if i % 2 else tuple(ids) for i, ids in enumerate(row)])
    return answers


def naive_logits(vlm: VisionLanguageModel, prompt: Prompt, answer: Sequence[int]) -> Tensor:
    """(T, V): what plain transformers predicts for every token of one answer; no padding, no cache, no packing."""
    ids = torch.cat([prompt.ids, torch.tensor(answer, dtype=torch.long)])[None]
    out = vlm.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == vlm.image_token).int(),
        pixel_values=prompt.pixels,
        image_grid_thw=prompt.grids,
        use_cache=False,
    )
    start = len(prompt.ids) - 1
    return out.logits[0, start : start + len(answer)]


def allowed_logps(vlm: VisionLanguageModel, logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (T, V) with forbidden ids left out, written as the definition says."""
    logits = logits / temperature
    keep = [i for i in range(logits.shape[-1]) if i not in vlm.suppressed_ids]
    return logits - logits[:, keep].exp().sum(dim=-1, keepdim=True).log()


def naive_logps(vlm: VisionLanguageModel, prompt: Prompt, answer: Sequence[int], temperature: float = 1.0) -> Tensor:
    """(T,): log-probabilities of one answer, by hand."""
    logps = allowed_logps(vlm, naive_logits(vlm, prompt, answer), temperature)
    return logps[torch.arange(len(answer)), torch.tensor(answer)]


def packed_logps(
    vlm: VisionLanguageModel, prompts: Sequence[Prompt], answers: Sequence, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(logp, real) (P, G, T) by the packed forward that is under test."""
    packed = vlm.pack(prompts, answers)
    logits = vlm.forward_packed(packed)
    logps, _ = answer_logps(logits, packed.tokens, packed.columns, temperature, vlm.suppressed_ids)
    return logps, packed.completion_mask


# ---------------------------------------------------------------------- packed rows == naive rows


@pytest.mark.usefixtures("calls")
@torch.no_grad()
def test_packed_log_probabilities_are_those_of_separate_rows(vlm: VisionLanguageModel, picture: Picture) -> None:
    prompts, answers = prompts_of(vlm, picture), answers_of(vlm)
    assert len({len(prompt.ids) for prompt in prompts}) == 3  # left padding is used
    for temperature in (1.0, 0.7):
        logps, completion_mask = packed_logps(vlm, prompts, answers, temperature)
        for p, prompt in enumerate(prompts):
            for g, answer in enumerate(answers[p]):
                assert completion_mask[p, g].tolist() == [True] * len(answer) + [False] * (7 - len(answer))
                alone = naive_logps(vlm, prompt, answer, temperature)
                torch.testing.assert_close(logps[p, g, : len(answer)], alone, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("calls")
@torch.no_grad()
def test_prompts_with_several_pictures_are_packed_and_sampled_like_separate_rows(
    vlm: VisionLanguageModel, picture: Picture
) -> None:
    views = [
        [picture(*size, seed=i) for i, size in enumerate(SIZES)],
        picture(64, 48, seed=7),
        [picture(32, 32, seed=8)],
    ]
    prompts, answers = vlm.encode(views, TEXTS), answers_of(vlm)
    tokens = [[4 * 3, 5 * 2, 2 * 6], [4 * 3], [2 * 2]]  # a visual token is 16 pixels wide
    for prompt, counts in zip(prompts, tokens):
        runs = "".join("x" if token == vlm.image_token else " " for token in prompt.ids.tolist()).split()
        assert [len(run) for run in runs] == counts
    assert prompts[0].grids.shape == (3, 3) and prompts[1].grids.shape == prompts[2].grids.shape == (1, 3)
    logps, _ = packed_logps(vlm, prompts, answers)
    for p, prompt in enumerate(prompts):
        for g, answer in enumerate(answers[p]):
            torch.testing.assert_close(logps[p, g, : len(answer)], naive_logps(vlm, prompt, answer), rtol=0, atol=1e-5)
    exchanged = vlm.encode([[views[0][1], views[0][0], views[0][2]]], TEXTS[:1])[0]
    assert (naive_logps(vlm, exchanged, answers[0][0]) - naive_logps(vlm, prompts[0], answers[0][0])).abs().max() > 0.05
    for prompt, (ids,) in zip(prompts, vlm.generate(prompts, 1, Sampling(0.0, 4))):
        chosen: list[int] = []
        while len(chosen) < len(ids):
            last = allowed_logps(vlm, naive_logits(vlm, prompt, [*chosen, 0])[-1:], 1.0)[0]
            last[list(vlm.suppressed_ids)] = -torch.inf
            chosen.append(int(last.argmax()))
        assert list(ids) == chosen


@torch.no_grad()
def test_the_naive_rows_notice_picture_order_and_position(vlm: VisionLanguageModel, picture: Picture) -> None:
    """Guards the test above: on a model that ignored its picture or its positions it could not fail."""
    (prompt, *_), ((answer, *_), *_) = prompts_of(vlm, picture), answers_of(vlm)
    before = naive_logps(vlm, prompt, answer)
    other = Prompt(prompt.ids, prompt.pixels.flip(0), prompt.grids)
    assert (naive_logps(vlm, other, answer) - before).abs().max() > 0.05
    turned = Prompt(prompt.ids, prompt.pixels, prompt.grids[:, [0, 2, 1]])
    assert (naive_logps(vlm, turned, answer) - before).abs().max() > 0.05


@pytest.mark.usefixtures("calls")
def test_packed_gradients_are_those_of_separate_rows(vlm: VisionLanguageModel, picture: Picture) -> None:
    prompts, answers = prompts_of(vlm, picture, 2), answers_of(vlm, 2)
    weights = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(1))

    logps, completion_mask = packed_logps(vlm, prompts, answers)
    (weights * logps)[completion_mask].sum().backward()
    packed = {name: p.grad.clone() for name, p in vlm.model.named_parameters()}
    vlm.model.zero_grad()

    for p, prompt in enumerate(prompts):
        for g, answer in enumerate(answers[p]):
            (weights[p, g, : len(answer)] * naive_logps(vlm, prompt, answer)).sum().backward()
    naive = {name: p.grad.clone() for name, p in vlm.model.named_parameters()}
    vlm.model.zero_grad()

    assert any("visual" in name for name in naive) and packed.keys() == naive.keys()
    largest = max(float(gradient.abs().max()) for gradient in naive.values())
    for name, gradient in naive.items():
        # A key's bias shifts all scores of a query alike: its gradient is 0 but for rounding.
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        error = float((packed[name] - gradient).abs().max())
        assert error <= 1e-5 * scale, f"{name}: {error:.1e} against gradients of {scale:.1e}"


@pytest.mark.usefixtures("calls")
@torch.no_grad()
def test_an_answer_does_not_see_its_siblings(vlm: VisionLanguageModel, picture: Picture) -> None:
    prompts, answers = prompts_of(vlm, picture, 2), answers_of(vlm, 2)
    before, completion_mask = packed_logps(vlm, prompts, answers)
    changed = [list(row) for row in answers]
    changed[0][1] = tuple(499 - i for i in answers[0][1])
    after, _ = packed_logps(vlm, prompts, changed)
    same = torch.ones(2, 4, dtype=torch.bool)
    same[0, 1] = False
    assert torch.equal(before[same], after[same])
    assert not torch.allclose(before[0, 1][completion_mask[0, 1]], after[0, 1][completion_mask[0, 1]], atol=1e-2)


@torch.no_grad()
def test_a_token_does_not_see_the_future_of_its_own_answer(vlm: VisionLanguageModel, picture: Picture) -> None:
    prompts = prompts_of(vlm, picture, 1)
    short, _ = packed_logps(vlm, prompts, [[(20, 30, 40, 50)]])
    other, _ = packed_logps(vlm, prompts, [[(20, 30, 99, 77)]])
    assert torch.equal(short[..., :2], other[..., :2])


@pytest.mark.usefixtures("calls")
@torch.no_grad()
def test_padding_and_batch_order_change_nothing(vlm: VisionLanguageModel, picture: Picture) -> None:
    prompts, answers = prompts_of(vlm, picture), answers_of(vlm)
    together, completion_mask = packed_logps(vlm, prompts, answers)
    backwards, _ = packed_logps(vlm, prompts[::-1], answers[::-1])
    torch.testing.assert_close(backwards.flip(0)[completion_mask], together[completion_mask], rtol=0, atol=1e-5)
    regrouped, _ = packed_logps(vlm, prompts, [[row[i] for i in (2, 0, 3, 1)] for row in answers])
    back = regrouped[:, [1, 3, 0, 2]]
    torch.testing.assert_close(back[completion_mask], together[completion_mask], rtol=0, atol=1e-5)
    for p in range(3):  # alone a row has no left padding, and answers are padded less
        alone, kept = packed_logps(vlm, prompts[p : p + 1], answers[p : p + 1])
        torch.testing.assert_close(alone[0][kept[0]], together[p][completion_mask[p]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_packed_positions_are_those_of_transformers(vlm: VisionLanguageModel, picture: Picture) -> None:
    prompts, answers = prompts_of(vlm, picture), answers_of(vlm)
    packed = vlm.pack(prompts, answers)
    positions = packed.inputs["position_ids"]
    for p, prompt in enumerate(prompts):
        S = len(prompt.ids)
        for g, answer in enumerate(answers[p]):
            ids = torch.cat([prompt.ids, torch.tensor(answer)])[None]
            kinds = (ids == vlm.image_token).int()
            expected, _ = vlm.model.model.get_rope_index(ids, kinds, image_grid_thw=prompt.grids)
            assert torch.equal(positions[:, p, packed.prefix - S : packed.prefix], expected[:, 0, :S])
            held = packed.prefix + packed.columns[p, g, : len(answer)]
            assert torch.equal(positions[:, p, held], expected[:, 0, S:])


def test_the_packed_record_is_the_answers(vlm: VisionLanguageModel, picture: Picture) -> None:
    prompts, answers = prompts_of(vlm, picture), answers_of(vlm)
    packed = vlm.pack(prompts, answers)
    ids = packed.inputs["input_ids"]
    for p, row in enumerate(answers):
        assert ids[p, : packed.prefix][-len(prompts[p].ids) :].tolist() == prompts[p].ids.tolist()
        for g, answer in enumerate(row):
            # The end token is real although padding is made of end tokens too.
            assert tuple(packed.tokens[p, g][packed.completion_mask[p, g]].tolist()) == answer
            assert tuple(ids[p, packed.prefix + packed.columns[p, g, : len(answer)]].tolist()) == answer
        held = packed.columns[p][packed.completion_mask[p]].tolist()
        assert len(set(held)) == len(held) == sum(map(len, row))  # a column each
    # Answers stand close together: unequal lengths cost nothing inside a row.
    assert ids.shape[1] == packed.prefix + max(sum(map(len, row)) for row in answers)


# ---------------------------------------------------------------------- loading and saving


def test_a_saved_model_is_the_same_model(vlm: VisionLanguageModel, picture: Picture, tmp_path: Path) -> None:
    vlm.save(tmp_path)
    again = VisionLanguageModel.load(str(tmp_path), torch.float32)
    prompts, answers = prompts_of(vlm, picture, 2), answers_of(vlm, 2)
    assert again.family == vlm.family and again.suppressed_ids == vlm.suppressed_ids and again.factor == vlm.factor
    assert again.model.config.get_text_config()._attn_implementation == TWO_CALLS  # or packed rows would leak
    with torch.no_grad():
        before, completion_mask = packed_logps(vlm, prompts, answers)
        after, _ = packed_logps(again, prompts_of(again, picture, 2), answers)
    assert torch.equal(after[completion_mask], before[completion_mask])


def test_a_folder_that_is_no_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "empty").mkdir()
    for source, reason in (
        (tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path / "empty", "empty has no config.json that can be used"),
        (tmp_path / "other", "llama.*qwen2_5_vl, qwen3_vl"),
    ):
        with pytest.raises(model.ModelError, match=reason):
            VisionLanguageModel.load(str(source), torch.float32)


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
    # part: (file, what becomes of it; None: it is gone)
    "config.json": ("config.json", lambda data: data[:100]),
    "weights": ("model.safetensors", lambda data: None),
    "weights ": ("model.safetensors", lambda data: data[: len(data) // 2]),
    "tokenizer": ("tokenizer.json", lambda data: None),
    "tokenizer ": ("tokenizer.json", lambda data: b'{"version": "9", "model": {"type": "of another version"}}'),
    "image processor": ("preprocessor_config.json", lambda data: None),
    "preprocessor_config.json": ("preprocessor_config.json", lambda data: b"caf\xe9"),
    "chat template": ("chat_template.jinja", lambda data: None),
}


@pytest.mark.parametrize("part", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_sentence_that_names_the_part(
    part: str, make_vlm: Callable, tmp_path: Path
) -> None:
    make_vlm("qwen3_vl").save(tmp_path)
    file, change = DAMAGE[part]
    data = change((tmp_path / file).read_bytes())
    (tmp_path / file).unlink()
    if data is not None:
        (tmp_path / file).write_bytes(data)
    with pytest.raises(model.ModelError) as caught:
        VisionLanguageModel.load(str(tmp_path), torch.float32)
    assert str(caught.value).startswith(f"{tmp_path} has no {part.strip()} ") and "\n" not in str(caught.value)


def test_the_folder_of_a_run_names_its_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-40", "samples"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-100", "checkpoint-40"):
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(
        model.ModelError, match=f"^{tmp_path} is no model itself, it holds checkpoint-40, checkpoint-100: name"
    ):
        VisionLanguageModel.load(str(tmp_path), torch.float32)


# ---------------------------------------------------------------------- sampling == plain generate


def test_greedy_answers_are_those_of_plain_generate(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable
) -> None:
    prompts = prompts_of(vlm, picture)
    with biased(vlm, {vlm.image_token: 50.0, vlm.end_token: 1.5}):
        ours = vlm.generate(prompts, 2, Sampling(temperature=0, max_new_tokens=12))
        plain = []
        for prompt in prompts:
            out = vlm.model.generate(
                input_ids=prompt.ids[None],
                attention_mask=torch.ones_like(prompt.ids)[None],
                mm_token_type_ids=(prompt.ids == vlm.image_token).int()[None],
                pixel_values=prompt.pixels,
                image_grid_thw=prompt.grids,
                max_new_tokens=12,
                do_sample=False,
                suppress_tokens=list(vlm.suppressed_ids),
                eos_token_id=vlm.end_token,
                pad_token_id=vlm.end_token,
            )
            plain.append(tuple(out[0, len(prompt.ids) :].tolist()))
            vlm.model.model.rope_deltas = None
    assert ours == [[answer, answer] for answer in plain]
    assert len(set(plain)) == 3 and max(len(set(answer)) for answer in plain) > 5


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@torch.no_grad()
def test_answers_are_drawn_from_the_distribution_that_scores_them(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable, temperature: float
) -> None:
    """A sampler written by hand, with the same random numbers, draws the same ids; and its probabilities of
    them are the packed scorer's. So temperature, forbidden ids, cache and positions agree in all three."""
    prompts, group = prompts_of(vlm, picture), 3
    with biased(vlm, {vlm.end_token: 4.0, vlm.image_token: 3.0}):
        torch.manual_seed(5)
        drawn = vlm.generate(prompts, group, Sampling(temperature, max_new_tokens=6))

        torch.manual_seed(5)
        rows = [(prompt, []) for prompt in prompts for _ in range(group)]
        by_hand = [[] for _ in rows]
        drawing = list(zip(rows, by_hand))
        for written in range(6):
            if written == 4:  # the end of the first stretch: answers that have ended leave the batch
                drawing = [row for row in drawing if vlm.end_token not in row[0][1]]
                assert len(drawing) < len(rows)
            probabilities = []
            for (prompt, ids), scores in drawing:
                logps = allowed_logps(vlm, naive_logits(vlm, prompt, [*ids, 0])[-1:], temperature)[0]
                logps[list(vlm.suppressed_ids)] = -torch.inf
                scores.append(logps)
                probabilities.append(logps.exp())
            for ((_, ids), _), chosen in zip(drawing, torch.multinomial(torch.stack(probabilities), 1)[:, 0].tolist()):
                ids.append(chosen)
        ours = [answer for answers in drawn for answer in answers]
        assert ours == [truncate_at_eos(ids, {vlm.end_token}) for _, ids in rows]
        lengths = [len(answer) for answer in ours]
        assert min(lengths) < max(lengths)  # some ended early, while their siblings went on

        scored, _ = packed_logps(vlm, prompts, drawn, temperature)
    for answer, scores, logps in zip(ours, by_hand, scored.flatten(0, 1)):
        sampled = torch.stack([scores[t][token] for t, token in enumerate(answer)])
        torch.testing.assert_close(logps[: len(answer)], sampled, rtol=0, atol=2e-5)


@torch.no_grad()
def test_forbidden_ids_are_never_drawn_and_the_scorer_knows(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable
) -> None:
    specials = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    assert set(vlm.suppressed_ids) == {vlm.tokenizer.convert_tokens_to_ids(token) for token in specials}
    prompts = prompts_of(vlm, picture)
    with biased(vlm, {token: 60.0 for token in vlm.suppressed_ids}):
        for temperature in (0.0, 1.0):
            answers = vlm.generate(prompts, 4, Sampling(temperature, max_new_tokens=5))
            drawn = {token for row in answers for answer in row for token in answer}
            assert drawn.isdisjoint(vlm.suppressed_ids)
        logps, completion_mask = packed_logps(vlm, prompts, answers)
    free, _ = packed_logps(vlm, prompts, answers)
    # A scorer that shared the mass with the forced ids would put every answer below -50.
    torch.testing.assert_close(logps[completion_mask], free[completion_mask], rtol=0, atol=1e-5)


def test_a_rollout_leaves_the_model_as_it_was(vlm: VisionLanguageModel, picture: Picture) -> None:
    prompts, answers = prompts_of(vlm, picture, 2), answers_of(vlm, 2)
    before, completion_mask = packed_logps(vlm, prompts, answers)
    vlm.model.train()
    try:
        modes: list[bool] = []
        hook = vlm.model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
        vlm.generate(prompts, 3, Sampling(1.0, max_new_tokens=3))
        hook.remove()
        assert modes and not any(modes)  # sampled without dropout and without checkpointing
        assert all(module.training for module in vlm.model.modules())
        assert vlm.model.model.rope_deltas is None
        after, _ = packed_logps(vlm, prompts, answers)
        assert torch.equal(after[completion_mask], before[completion_mask])
        assert after.requires_grad
        vlm.model.eval()
        vlm.generate(prompts[:1], 2, Sampling(1.0, max_new_tokens=3))
        assert not vlm.model.training
    finally:
        vlm.model.eval()


def test_a_rollout_that_fails_leaves_the_model_as_it_was(
    vlm: VisionLanguageModel, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    vlm.model.train()
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("activeo3.generate.write_in_place", interrupted)
            vlm.generate(prompts_of(vlm, picture, 2), 2, Sampling(1.0, max_new_tokens=3))
        assert vlm.model.training
        assert vlm.model.model.rope_deltas is None
    finally:
        vlm.model.eval()


def test_sampling_stops_when_every_answer_has_ended(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable
) -> None:
    passes: list[int] = []
    hook = vlm.model.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    with biased(vlm, {vlm.end_token: 100.0}):
        answers = vlm.generate(prompts_of(vlm, picture, 2), 2, Sampling(1.0, max_new_tokens=40))
    hook.remove()
    assert answers == [[(vlm.end_token,)] * 2] * 2
    assert len(passes) == 2  # the prefill, and the first token


def with_settings(make_vlm: Make, family: str = "qwen3_vl", **settings) -> VisionLanguageModel:
    """A model whose checkpoint states these settings of generation."""
    made = make_vlm(family)
    for name, value in settings.items():
        setattr(made.model.generation_config, name, value)
    return VisionLanguageModel(made.model, made.tokenizer, made.image_processor)


@pytest.mark.parametrize("settings", [
    {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}, {"stop_strings": ["a"]}, {"num_return_sequences": 2},
    {"do_sample": True, "min_p": 0.9}, {"typical_p": 0.2}, {"epsilon_cutoff": 0.3}, {"top_k": 1}, {"top_p": 0.1}, {"temperature": 0.1},
    {"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}, {"bad_words_ids": [[17], [18]]}, {"min_new_tokens": 12},
    {"encoder_repetition_penalty": 2.0}, {"exponential_decay_length_penalty": (1, 5.0)}, {"forced_eos_token_id": 40},
    {"begin_suppress_tokens": [50, 51]}, {"sequence_bias": [[[30], 9.0]]}, {"guidance_scale": 2.0}, {"renormalize_logits": True},
    {"max_length": 5}, {"output_scores": True, "return_dict_in_generate": True}, {"penalty_alpha": 0.6},
], ids=lambda settings: "-".join(settings))  # fmt: skip
def test_a_checkpoints_own_settings_of_generation_have_no_part_in_sampling(
    make_vlm: Make, picture: Picture, biased: Callable, settings: dict
) -> None:
    """The same ids are drawn and the same log-probabilities kept as without them, and they are still there to be
    saved."""
    drawn = []
    for vlm in (with_settings(make_vlm), stated := with_settings(make_vlm, **settings)):
        torch.manual_seed(3)
        with biased(vlm, {vlm.end_token: 3.0}):
            (row,) = vlm.generate_multi_turn(prompts_of(vlm, picture, 1), 4, Sampling(1.0, max_new_tokens=10))
        drawn.append([(branch.answer, branch.logps) for branch in row])
    assert drawn[0] == drawn[1] and len({answer for answer, _ in drawn[0]}) > 1
    assert all(getattr(stated.model.generation_config, name) == value for name, value in settings.items())


def test_every_end_token_of_a_checkpoint_ends_an_answer(make_vlm: Make, picture: Picture, biased: Callable) -> None:
    other = make_vlm("qwen3_vl").tokenizer.convert_tokens_to_ids("<|endoftext|>")
    vlm = with_settings(make_vlm, eos_token_id=[other, 40])
    assert vlm.end_tokens == {vlm.end_token, other, 40} and len(vlm.end_tokens) == 3
    for end in sorted(vlm.end_tokens):
        with biased(vlm, {end: 100.0}):
            ((answer, _),) = vlm.generate(prompts_of(vlm, picture, 1), 2, Sampling(1.0, max_new_tokens=5))
        assert answer == (end,) and vlm.is_finished(answer) and vlm.decode(answer) == ""
    assert not vlm.is_finished((41,)) and not vlm.is_finished(())


def test_what_the_template_begins_an_answer_with_belongs_to_its_text(make_vlm: Make) -> None:
    plain = make_vlm("qwen3_vl")
    ids = plain.tokenizer("left</think><answer>[]</answer>").input_ids
    assert plain.opening == "" and plain.decode(ids) == "left</think><answer>[]</answer>"

    def begun(opening: str) -> VisionLanguageModel:
        thinking = copy.deepcopy(plain.tokenizer)  # as the templates of models that always think, or never
        thinking.chat_template = plain.tokenizer.chat_template.replace(
            "<|im_start|>assistant\n{% endif %}", f"<|im_start|>assistant\n{opening}{{% endif %}}"
        )
        return VisionLanguageModel(plain.model, thinking, plain.image_processor)

    closed = begun("<think>\n\n</think>\n\n")
    assert closed.opening == "" and closed.decode([*ids, closed.end_token]) == "left</think><answer>[]</answer>"
    assert closed.tokenizer.decode(closed.encode_next([None], ["Closer."])[0].ids).endswith("<think>\n\n</think>\n\n")
    vlm = begun("<think>\n")
    assert vlm.opening == "<think>\n"
    assert vlm.decode([*ids, vlm.end_token]) == "<think>\nleft</think><answer>[]</answer>"
    (prompt,) = vlm.encode_next([None], ["Closer."])
    assert vlm.tokenizer.decode(prompt.ids).endswith("assistant\n<think>\n")


def test_the_end_token_is_kept_and_what_follows_is_not() -> None:
    assert truncate_at_eos([4, 5, 2, 2, 2], {2}) == (4, 5, 2)
    assert truncate_at_eos([2, 7], {2}) == (2,)
    assert truncate_at_eos([4, 5], {2}) == (4, 5)  # cut off by the length limit
    assert truncate_at_eos([], {2}) == ()
    assert truncate_at_eos([4, 7, 2], {2, 7}) == (4, 7)


# ---------------------------------------------------------------------- pictures and text -> prompts


@pytest.mark.parametrize(
    "quoted", ["<|image_pad|>", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>", "a <|im_start|>system b"]
)
def test_special_tokens_that_the_data_quotes_are_text(vlm: VisionLanguageModel, picture: Picture, quoted: str) -> None:
    """As many image tokens as features, the special ids of the template alone, and the very same words."""
    question = f"What does {quoted} mean?"
    view = picture(64, 48)
    plain, prompt = vlm.encode([view, view], ["What does it mean?", question])
    special = [i for i, token in vlm.tokenizer.added_tokens_decoder.items() if token.special]
    kinds = [[token for token in one.ids.tolist() if token in special] for one in (plain, prompt)]
    assert kinds[0] == kinds[1] and kinds[0].count(vlm.image_token) == 12
    assert vlm.tokenizer.decode(prompt.ids) == vlm.tokenizer.decode(plain.ids).replace("What does it mean?", question)
    (shown,) = vlm.encode_next([None], [question])
    assert question in vlm.tokenizer.decode(shown.ids) and vlm.image_token not in shown.ids


def test_marks_of_quoted_tokens_do_no_harm_in_data(vlm: VisionLanguageModel, picture: Picture) -> None:
    for text in ("\ue0005\ue001", "\ue0009999\ue001", "\ue000\ue001", "\ue0001"):
        (prompt,) = vlm.encode([picture(64, 48)], [text])
        assert prompt.ids.tolist().count(vlm.image_token) == 12


def test_prompt_ids_are_the_chat_template_with_image_tokens_expanded(
    vlm: VisionLanguageModel, picture: Picture
) -> None:
    for prompt, text, (width, height) in zip(prompts_of(vlm, picture), TEXTS, SIZES):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        ids = vlm.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
        features = (width // 16) * (height // 16)
        at = ids.index(vlm.image_token)
        assert prompt.ids.tolist() == ids[:at] + [vlm.image_token] * features + ids[at + 1 :]
        assert prompt.grids.tolist() == [[1, height // 8, width // 8]]
        alone = vlm.image_processor(
            images=[picture(width, height, seed=SIZES.index((width, height)))],
            do_resize=False,
            return_tensors="pt",
        )
        assert torch.equal(prompt.pixels, alone["pixel_values"])


def test_a_token_count_that_does_not_fit_the_picture_is_refused_with_its_numbers(
    vlm: VisionLanguageModel, picture: Picture
) -> None:
    prompt, other = prompts_of(vlm, picture, 2)  # 12 and 10 visual tokens
    wrong = Prompt(other.ids, prompt.pixels, prompt.grids)
    # Two pictures that changed places fit in total, and would be read as each other's rows.
    swapped = Prompt(prompt.ids, other.pixels, other.grids)
    for first, features in ((prompt, r"\[12, 12\]"), (swapped, r"\[10, 12\]")):
        for use in (
            lambda: vlm.pack([first, wrong], [[(20,)], [(20,)]]),
            lambda: vlm.generate([first, wrong], 2, Sampling(1.0, max_new_tokens=1)),
        ):
            with pytest.raises(RuntimeError, match=rf"image tokens \[12, 10\].*visual features {features}"):
                use()


def test_views_are_whole_visual_tokens_and_pass_the_processor_unchanged(
    vlm: VisionLanguageModel, picture: Picture
) -> None:
    assert vlm.factor == 16
    assert vlm.view_size((100, 50)) == (96, 48)
    width, height = vlm.view_size((1000, 500), (1, 5000))
    assert width % 16 == height % 16 == 0 and width * height <= 5000
    (prompt,) = vlm.encode([picture(width, height)], ["Where?"])
    assert prompt.grids.tolist() == [[1, height // 8, width // 8]]


def test_coordinates_are_pixels_for_one_family_and_thousandths_for_the_other(make_vlm: Make) -> None:
    assert make_vlm("qwen2_5_vl").text_scale((640, 480)) == (640, 480)
    assert make_vlm("qwen3_vl").text_scale((640, 480)) == (1000, 1000)


def test_a_packed_row_is_the_same_under_eager_attention_and_refused_under_others(make_vlm, picture) -> None:
    vlm = make_vlm("qwen3_vl", 3)
    prompts = vlm.encode([picture(32, 48, 1), picture(64, 32, 2)], ["a", "much longer than the first"])
    branches = [[[40, 41, 42], [50]], [[60, 61], [70, 71, 72, 73]]]
    with torch.no_grad():
        booleans = vlm.pack(prompts, branches)
        expected, _ = answer_logps(vlm.forward_packed(booleans), booleans.tokens, booleans.columns)
        vlm.model.set_attn_implementation({"text_config": "eager"})
        added = vlm.pack(prompts, branches)
        found, _ = answer_logps(vlm.forward_packed(added), added.tokens, added.columns)
    torch.testing.assert_close(found[added.completion_mask], expected[booleans.completion_mask], rtol=0, atol=1e-5)
    vlm.model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="need attention 'sdpa', 'flex' or 'eager'.*flash_attention_2"):
        vlm.pack(prompts, branches)
