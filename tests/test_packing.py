"""packing.py, decoding.py and their use in generate.py and model.py: episodes of several turns against plain
transformers, one whole row at a time without cache, packing or padding."""

from dataclasses import replace
from typing import Callable, Sequence

import pytest
import torch
from naive_rows import Picture, Shows, ids_of, naive_logits, naive_logps, packed_logps
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

from activeo3.decoding import ROOM, new_cache
from activeo3.grpo import answer_logps, token_weights
from activeo3.model import VisionLanguageModel
from activeo3.packing import Branch, Packed, Prompt, sampler_logps
from activeo3.types import Sampling

MEMORIES = pytest.mark.parametrize("episodes", ["views", "notes"], indirect=True)


@pytest.fixture(scope="module")
def episodes(
    request: pytest.FixtureRequest, vlm: VisionLanguageModel, picture: Picture
) -> tuple[list[Prompt], list[list[Branch]]]:
    """Two prompts with three branches each: one to three turns, crops of different shapes, two at once, words without
    one.

    With the memory ``notes``, every crop takes the place of all views before it.
    """
    prompts = vlm.encode([picture(64, 48, 0), picture(80, 32, 1)], ["Where is a red star?", "Read it."], ["a", "b"])
    seen = vlm.encode_next(
        [picture(48, 32, 2), picture(32, 64, 3), None, [picture(16, 16, 4), picture(48, 16, 6)], picture(96, 32, 5)],
        ["Closer.", "And closer.", "That is no box.", "Both.", "Look again: is it there?"],
    )
    if getattr(request, "param", "views") == "notes":
        seen = [replace(one, replaces=len(one.grids) > 0) for one in seen]
    turn = lambda length, seed: ids_of(length, seed, vlm.end_token)  # noqa: E731
    return prompts, [
        [
            Branch((turn(5, 1), turn(3, 2), turn(4, 3)), (seen[0], seen[1])),
            Branch((turn(6, 4),)),
            Branch((turn(2, 5), turn(7, 6)), (seen[2],)),
        ],
        [
            Branch((turn(4, 7), turn(2, 8)), (seen[3],)),
            Branch((turn(1, 9), turn(3, 10), turn(2, 11), turn(3, 12)), (seen[2], seen[4], seen[0])),
            Branch(((40, 41, 42),)),  # cut off: no end token
        ],
    ]


# ---------------------------------------------------------------------- packed episodes == separate rows


def test_a_branch_knows_what_was_sampled(vlm: VisionLanguageModel, episodes: tuple) -> None:
    branch = episodes[1][0][0]
    first, second, third = branch.turns
    one, two = (tuple(seen.ids.tolist()) for seen in branch.shown)
    assert branch.ids == first + one + second + two + third and branch.answer == first + second + third
    assert tuple(token for token, own in zip(branch.ids, branch.sampled) if own) == branch.answer
    assert Branch.of([3, 4]).turns == ((3, 4),) and Branch.of(branch) is branch
    with pytest.raises(ValueError, match="1 observations do not stand between 1 turns"):
        Branch((first,), branch.shown[:1])


@pytest.mark.usefixtures("calls")
@MEMORIES
@torch.no_grad()
def test_packed_episodes_have_the_log_probabilities_of_separate_rows(vlm: VisionLanguageModel, episodes: tuple) -> None:
    prompts, branches = episodes
    packed = vlm.pack(prompts, branches)
    logps = packed_logps(vlm, packed)
    for r, row in enumerate(branches):
        for b, branch in enumerate(row):
            count = len(branch.answer)
            assert tuple(packed.tokens[r, b, :count].tolist()) == branch.answer
            assert packed.completion_mask[r, b].tolist() == [True] * count + [False] * (packed.tokens.shape[2] - count)
            torch.testing.assert_close(logps[r, b, :count], naive_logps(vlm, prompts[r], branch), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_naive_rows_notice_what_is_shown(vlm: VisionLanguageModel, picture: Picture, episodes: tuple) -> None:
    """Guards the test above: crops, their order and their places must matter, or it could not fail."""
    prompts, ((branch, *_), _) = episodes
    before = naive_logps(vlm, prompts[0], branch)
    one, two = branch.shown
    dark = Prompt(one.ids, torch.zeros_like(one.pixels), one.grids)
    turned = Prompt(one.ids, one.pixels, one.grids[:, [0, 2, 1]])
    for shown in ((dark, two), (turned, two), (two, one)):
        after = naive_logps(vlm, prompts[0], Branch(branch.turns, shown))
        assert torch.equal(after[: len(branch.turns[0])], before[: len(branch.turns[0])])
        assert (after - before).abs().max() > 0.05


@torch.no_grad()
def test_each_of_several_crops_is_noticed(vlm: VisionLanguageModel, episodes: tuple) -> None:
    prompts, (_, (branch, *others)) = episodes
    (both,) = branch.shown
    assert both.grids.tolist() == [[1, 2, 2], [1, 2, 6]] and int((both.ids == vlm.image_token).sum()) == 4
    packed = vlm.pack(prompts[1:], [[branch, *others]])
    before, later = packed_logps(vlm, packed)[0, 0], len(branch.turns[0])
    for patches in (slice(0, 4), slice(4, 16)):  # the first crop's, the second one's
        pixels = both.pixels.clone()
        pixels[patches] = 0
        dark = Branch(branch.turns, (Prompt(both.ids, pixels, both.grids),))
        after = packed_logps(vlm, vlm.pack(prompts[1:], [[dark, *others]]))[0, 0]
        torch.testing.assert_close(after[:later], before[:later], rtol=0, atol=1e-6)
        assert (after - before)[later : len(branch.answer)].abs().max() > 0.01


@pytest.mark.usefixtures("calls")
@MEMORIES
def test_packed_episodes_have_the_gradients_of_separate_rows(vlm: VisionLanguageModel, episodes: tuple) -> None:
    prompts, branches = episodes
    packed = vlm.pack(prompts, branches)
    weights = torch.randn(packed.tokens.shape, generator=torch.Generator().manual_seed(1))
    (weights * packed_logps(vlm, packed))[packed.completion_mask].sum().backward()
    ours = {name: p.grad.clone() for name, p in vlm.model.named_parameters()}
    vlm.model.zero_grad()
    for r, row in enumerate(branches):
        for b, branch in enumerate(row):
            (weights[r, b, : len(branch.answer)] * naive_logps(vlm, prompts[r], branch)).sum().backward()
    naive = {name: p.grad.clone() for name, p in vlm.model.named_parameters()}
    vlm.model.zero_grad()
    largest = max(float(gradient.abs().max()) for gradient in naive.values())
    for name, gradient in naive.items():
        # A key's bias shifts all scores of a query alike: its gradient is 0 but for rounding.
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((ours[name] - gradient).abs().max()) <= 1e-5 * scale, name


@pytest.mark.usefixtures("calls")
@MEMORIES
@torch.no_grad()
def test_packed_positions_are_those_of_transformers(vlm: VisionLanguageModel, episodes: tuple) -> None:
    prompts, branches = episodes
    packed = vlm.pack(prompts, branches)
    for r, (prompt, row) in enumerate(zip(prompts, branches)):
        begin = packed.prefix
        for branch in row:
            ids = torch.tensor([*prompt.ids.tolist(), *branch.ids])[None]
            grids = torch.cat([turn.grids for turn in (prompt, *branch.shown)])
            expected, _ = vlm.model.model.get_rope_index(ids, (ids == vlm.image_token).int(), image_grid_thw=grids)
            end = begin + len(branch.ids)
            assert torch.equal(packed.inputs["position_ids"][:, r, begin:end], expected[:, 0, len(prompt.ids) :])
            assert tuple(packed.inputs["input_ids"][r, begin:end].tolist()) == branch.ids
            begin = end


# ---------------------------------------------------------------------- what is shown is never trained


@pytest.mark.usefixtures("calls")
@MEMORIES
def test_observations_are_attended_and_get_a_gradient_of_exactly_zero(
    vlm: VisionLanguageModel, episodes: tuple
) -> None:
    """With the logits of every column at hand, those that predict a token of an observation get no gradient at
    all, those that predict a sampled one do; and yet what was shown changes what follows."""
    prompts, branches = episodes
    packed = vlm.pack(prompts, branches)
    every = vlm.forward_packed(
        Packed(packed.inputs, packed.prefix, packed.tokens, packed.completion_mask, packed.columns)
    )
    every.retain_grad()
    logps, _ = answer_logps(every, packed.tokens, packed.columns, 1.0, vlm.suppressed_ids)
    weight = token_weights(packed.completion_mask, "response", 6, int(packed.completion_mask.sum()), 64)
    (weight * logps).sum().backward()
    vlm.model.zero_grad()
    moved = every.grad.abs().amax(dim=-1) > 0  # (R, 1 + W)
    assert moved.shape[1] == packed.inputs["input_ids"].shape[1] - packed.prefix + 1
    for r, row in enumerate(branches):
        assert moved[r, 0]  # predicts every branch's first token
        begin = 0
        for branch in row:
            sampled = [*branch.sampled[1:], False]  # is the token after this one sampled?
            assert moved[r, 1 + begin : 1 + begin + len(sampled)].tolist() == sampled
            begin += len(sampled)
    # The logits that forward_packed leaves out are among those that nothing needs.
    assert packed.logit_columns is not None and len(packed.logit_columns) < moved.shape[1]
    unused = [column for column in range(moved.shape[1]) if column not in packed.logit_columns.tolist()]
    assert not moved[:, unused].any() and int(moved.any(dim=0).sum()) == len(packed.logit_columns)


def test_a_branch_does_not_see_the_crops_of_its_siblings(vlm: VisionLanguageModel, episodes: tuple) -> None:
    prompts, branches = episodes
    with torch.no_grad():
        before = packed_logps(vlm, packed := vlm.pack(prompts, branches))
        one, two = branches[0][0].shown
        dark = Branch(branches[0][0].turns, (Prompt(one.ids, torch.zeros_like(one.pixels), one.grids), two))
        after = packed_logps(vlm, vlm.pack(prompts, [[dark, *branches[0][1:]], branches[1]]))
    same = packed.completion_mask.clone()
    same[0, 0, len(dark.turns[0]) :] = False
    torch.testing.assert_close(after[same], before[same], rtol=0, atol=1e-6)
    changed = packed.completion_mask & ~same
    assert (after[changed] - before[changed]).abs().max() > 0.05


def test_plain_answers_are_branches_of_one_turn(vlm: VisionLanguageModel, episodes: tuple) -> None:
    prompts, branches = episodes
    plain = [[branch.turns[0] for branch in row] for row in branches]
    as_ids, as_branches = (
        vlm.pack(prompts, plain),
        vlm.pack(prompts, [[Branch((ids,)) for ids in row] for row in plain]),
    )
    assert as_ids.logit_columns is None and as_branches.logit_columns is None
    assert all(torch.equal(as_ids.inputs[name], as_branches.inputs[name]) for name in as_ids.inputs)
    assert torch.equal(as_ids.columns, as_branches.columns) and torch.equal(as_ids.tokens, as_branches.tokens)


def test_a_picture_that_does_not_fit_its_tokens_is_refused_by_the_name_of_the_example(
    vlm: VisionLanguageModel, episodes: tuple
) -> None:
    prompts, branches = episodes
    one, two = branches[0][0].shown  # 6 and 8 visual tokens
    cut = Branch(branches[0][0].turns, (Prompt(one.ids[:-4], one.pixels, one.grids), two))
    vlm.pack(prompts, [[cut, *branches[0][1:]], branches[1]])  # words may be missing,
    gone = Prompt(one.ids[one.ids != vlm.image_token], one.pixels, one.grids)  # but a picture is its tokens
    wrong = [[Branch(branches[0][0].turns, (gone, two)), *branches[0][1:]], branches[1]]
    with pytest.raises(RuntimeError, match=r"image tokens \[20, 32\] do not match visual features \[26, 32\], see a$"):
        vlm.pack(prompts, wrong)


# ---------------------------------------------------------------------- what can be seen no more


def replacing(branch: Branch, dark: Sequence[int] = ()) -> Branch:
    """The branch with every view in the place of those before it; those of ``dark`` observations are black."""
    pixels = [torch.zeros_like(seen.pixels) if i in dark else seen.pixels for i, seen in enumerate(branch.shown)]
    shown = [replace(seen, replaces=len(seen.grids) > 0, pixels=of_one) for seen, of_one in zip(branch.shown, pixels)]
    return Branch(branch.turns, tuple(shown))


def test_a_branch_knows_when_its_views_were_replaced(vlm: VisionLanguageModel, episodes: tuple) -> None:
    first, (_, second, _) = episodes[1][0][0], episodes[1][1]
    assert set(first.eras) == {0} and len(first.eras) == len(first.ids)
    (a, b, c), (one, two) = first.turns, first.shown
    lengths = [len(a), len(one.ids) + len(b), len(two.ids) + len(c)]
    assert replacing(first).eras == tuple(
        image_epoch for image_epoch, length in enumerate(lengths) for _ in range(length)
    )
    # The first observation of this one is words alone: they replace nothing.
    quiet = len(second.turns[0]) + len(second.shown[0].ids) + len(second.turns[1])
    eras = replacing(second).eras
    assert set(eras[:quiet]) == {0} and eras[quiet] == 1 and max(eras) == 2


@torch.no_grad()
def test_earlier_views_are_out_of_sight_and_everything_else_is_as_it_was(
    vlm: VisionLanguageModel, episodes: tuple
) -> None:
    """The packed mask, column by column: what is hidden are the image tokens of earlier views and nothing else."""
    prompts, branches = episodes
    notes = vlm.pack(prompts, [[replacing(branch) for branch in row] for row in branches])
    views = vlm.pack(prompts, branches)
    assert {name for name in notes.inputs if not torch.equal(notes.inputs[name], views.inputs[name])} == {
        "attention_mask"
    }
    seen, then = (packed.inputs["attention_mask"] == 0 for packed in (views, notes))  # what is not is -inf
    lost = seen & ~then
    assert not (then & ~seen).any()
    prefix, (first, *_) = notes.prefix, branches[0]
    one, two = first.shown
    middle = prefix + len(first.turns[0]) + len(one.ids) + len(first.turns[1])  # where the second crop's turn begins
    image = notes.inputs["input_ids"][0] == vlm.image_token
    hidden = [place for place in range(middle) if image[place]]  # the whole picture and the first crop
    assert lost[0, 0, middle].nonzero()[:, 0].tolist() == hidden
    assert lost[0, 0, prefix + len(first.turns[0])].nonzero()[:, 0].tolist() == [
        place for place in hidden if place < prefix
    ]
    assert not lost[0, 0, : prefix + len(first.turns[0])].any()


@torch.no_grad()
def test_a_view_that_was_replaced_reaches_later_tokens_through_text_alone(
    vlm: VisionLanguageModel, episodes: tuple, make_vlm: Callable[..., VisionLanguageModel]
) -> None:
    """In a text tower of one layer, text has taken in nothing when it is attended to: there, what was replaced
    changes no later token at all. With all layers it does, by way of the text in between."""
    prompts, branches = episodes
    branch, others = branches[0][0], branches[0][1:]
    later = len(branch.turns[0]) + len(branch.turns[1])  # what is sampled after the second crop

    def difference(one: Branch, other: Branch) -> Tensor:
        logps = [packed_logps(model, model.pack(prompts[:1], [[of_one, *others]]))[0, 0] for of_one in (one, other)]
        return (logps[0] - logps[1]).abs()[: len(branch.answer)]

    model = vlm
    assert difference(replacing(branch), replacing(branch, dark=[0]))[later:].max() > 1e-4
    model = make_vlm(vlm.family)
    model.model.config.get_text_config().num_hidden_layers = 1
    model.model.model.language_model.layers = model.model.model.language_model.layers[:1]
    black = difference(replacing(branch), replacing(branch, dark=[0]))
    assert torch.equal(black[later:], torch.zeros(len(branch.turns[2])))
    assert black[len(branch.turns[0]) : later].max() > 0.01  # while it could be seen, it was
    assert difference(replacing(branch), replacing(branch, dark=[1]))[later:].max() > 0.01
    in_sight = Branch(
        branch.turns, (replace(branch.shown[0], pixels=replacing(branch, [0]).shown[0].pixels), branch.shown[1])
    )
    assert difference(branch, in_sight)[later:].max() > 0.01


# ---------------------------------------------------------------------- what is shown is the chat template's


def test_an_observation_is_a_user_turn_of_the_chat_template(vlm: VisionLanguageModel, picture: Picture) -> None:
    view = picture(48, 32, 2)
    (prompt,) = vlm.encode([picture(64, 48)], ["Where?"])
    crop, words = vlm.encode_next([view, None], ["Closer.", "No."], ["x", "y"])
    first = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}
    said = {"role": "assistant", "content": "there"}
    turn = vlm.tokenizer("there<|im_end|>", add_special_tokens=False).input_ids
    for shown, content, features in (
        (crop, [{"type": "image"}, {"type": "text", "text": "Closer."}], [12, 6]),
        (words, [{"type": "text", "text": "No."}], [12]),
    ):
        conversation = [first, said, {"role": "user", "content": content}]
        ids = vlm.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
        counts = iter(features)
        expanded = [[token] * (next(counts) if token == vlm.image_token else 1) for token in ids]
        assert [*prompt.ids.tolist(), *turn, *shown.ids.tolist()] == sum(expanded, [])
    alone = vlm.image_processor(images=[view], do_resize=False, return_tensors="pt")
    assert torch.equal(crop.pixels, alone["pixel_values"]) and torch.equal(crop.grids, alone["image_grid_thw"])
    assert len(words.grids) == 0 and (crop.name, words.name) == ("x", "y")


# ---------------------------------------------------------------------- sampling


def test_a_cache_with_room_holds_what_one_without_does() -> None:
    """Written to token by token, repeated, selected, and longer than its room; and rows do not write into each
    other."""
    plain, roomy = DynamicCache(), new_cache(PreTrainedConfig(num_hidden_layers=2))
    draw = lambda rows, columns: torch.randn(rows, 2, columns, 4)  # noqa: E731
    for rows, change in (
        (2, lambda cache: cache.batch_repeat_interleave(3)),
        (6, lambda cache: cache.batch_select_indices(torch.tensor([4, 1]))),
        (2, id),
    ):
        for columns in (5, *[1] * (ROOM + 3)):
            for number in range(2):
                keys, values = draw(rows, columns), draw(rows, columns)
                for ours, theirs in zip(
                    roomy.update(keys, values, number), plain.update(keys, values, number), strict=True
                ):
                    assert torch.equal(ours, theirs)
        change(plain), change(roomy)
        assert roomy.get_seq_length() == plain.get_seq_length()
    assert roomy.layers[0].keys.data_ptr() == roomy.layers[0].rooms[0].data_ptr()  # it was written in place


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("notes", [False, True])
@torch.no_grad()
def test_greedy_episodes_are_those_of_plain_forward_passes(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable, notes: bool
) -> None:
    """Caches that are set aside, padded and joined, against one plain pass over everything for every token."""
    prompts = vlm.encode(
        [picture(64, 48, 0), picture(80, 32, 1), picture(32, 96, 2)], ["Where?", "Read it, please.", "And?"]
    )
    shows, longest = Shows(vlm, picture, 3, notes), 10
    with biased(vlm, {vlm.image_token: 50.0, vlm.end_token: 2.6 if notes else 2.2}):
        ours = vlm.generate_multi_turn(prompts, 2, Sampling(temperature=0, max_new_tokens=longest), shows)
        for row, branch in enumerate(branch for branches in ours for branch in branches):
            prompt, turns, shown = prompts[row // 2], [], []
            while True:
                said: tuple[int, ...] = ()
                while len(said) < longest and vlm.end_token not in said:
                    # The log-probability of every token that could be next, as a branch with one token more.
                    so_far = Branch((*turns, (*said, 0)), tuple(shown))
                    said += (_next(vlm, prompt, so_far),)
                turns.append(said)
                after = shows.after(row, len(turns)) if said[-1] == vlm.end_token else None
                if after is None:
                    break
                shown.append(after)
            assert branch.turns == tuple(turns), f"row {row}"
            assert branch.shown == tuple(shown)
            assert shows.asked.get(row, []) == [turn for turn in turns if turn[-1] == vlm.end_token]
    branches = [branch for row in ours for branch in row]
    assert {len(branch.turns) for branch in branches} >= {1, 2, 3}
    assert len({len(turn) for branch in branches for turn in branch.turns}) > 3  # turns of unequal lengths


def _next(vlm: VisionLanguageModel, prompt: Prompt, branch: Branch) -> int:
    """The likeliest id in place of a branch's last token."""
    logits = naive_logits(vlm, prompt, branch)[0, -2]
    logits[list(vlm.suppressed_ids)] = -torch.inf
    return int(logits.argmax())


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("notes", [False, True])
@torch.no_grad()
def test_sampled_episodes_are_scored_by_the_distribution_that_drew_them(
    vlm: VisionLanguageModel, picture: Picture, biased: Callable, notes: bool
) -> None:
    """The log-probabilities under which tokens were drawn, taken down while they were, are the packed scorer's."""
    prompts = vlm.encode([picture(64, 48, 0), picture(80, 32, 1)], ["Where?", "Read it, please."])
    drawn: list[tuple[int, float]] = []  # (row, log-probability of a token)
    decode = vlm._decode

    def noted(rows, stretch, sampling):
        heads: list[Tensor] = []
        hook = vlm.model.register_forward_hook(lambda module, inputs, out: heads.append(out.logits[:, -1]))
        row_ids = list(rows.row_ids)
        fresh, logps = decode(rows, stretch, sampling)
        hook.remove()
        for row, tokens in zip(range(len(row_ids)), fresh):
            for step, token in enumerate(tokens):
                logits = heads[step][row].clone()
                logits[list(vlm.suppressed_ids)] = -torch.inf
                drawn.append((row_ids[row], float(logits.log_softmax(dim=-1)[token])))
        return fresh, logps

    with biased(vlm, {vlm.end_token: 4.0}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm, "_decode", noted)
        torch.manual_seed(4)
        branches = vlm.generate_multi_turn(prompts, 4, Sampling(1.0, max_new_tokens=9), Shows(vlm, picture, 3, notes))
        packed = vlm.pack(prompts, branches)
        scored = packed_logps(vlm, packed).flatten(0, 1)
    completion_mask = packed.completion_mask.flatten(0, 1)
    for row in range(8):
        wanted = torch.tensor([logp for row_ids, logp in drawn if row_ids == row])
        torch.testing.assert_close(scored[row][completion_mask[row]], wanted, rtol=0, atol=2e-5)
        logit_columns = sampler_logps(branches).flatten(0, 1)[row]
        torch.testing.assert_close(logit_columns[completion_mask[row]], wanted, rtol=0, atol=2e-6)
        assert logit_columns[~completion_mask[row]].isnan().all()
    assert max(len(branch.turns) for row in branches for branch in row) > 2


def test_a_turn_that_was_cut_off_is_the_last(vlm: VisionLanguageModel, picture: Picture, biased: Callable) -> None:
    shows = Shows(vlm, picture, most=9)
    with biased(vlm, {vlm.end_token: -100.0}):
        ((branch,),) = vlm.generate_multi_turn(
            vlm.encode([picture(64, 48)], ["Where?"]), 1, Sampling(1.0, max_new_tokens=7), shows
        )
    assert len(branch.turns) == 1 and len(branch.answer) == 7 and not shows.asked


def test_the_rollout_leaves_no_state_behind(vlm: VisionLanguageModel, picture: Picture, biased: Callable) -> None:
    with biased(vlm, {vlm.end_token: 8.0}):
        vlm.generate_multi_turn(
            vlm.encode([picture(64, 48)], ["Where?"]), 3, Sampling(1.0, max_new_tokens=7), Shows(vlm, picture, 2)
        )
    assert vlm.model.model.rope_deltas is None
