"""model_files.py, lora.py and model.py on model folders as they are published (published.py).

Second opinion: transformers' own processor, on the same folder. It needs torchvision for videos only, so that part is
replaced; template, tokenizer, pictures and the ids of a prompt are its own.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import published
import pytest
import torch
from data_folders import vstar_set
from launch import finely_sharded, rank_environment
from PIL import Image
from published import LAYOUTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import prepare, rows_of
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, ProcessorMixin, processing_utils

import evaluate
import train
from activeo3 import model_files, processes
from activeo3.config import TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.model import ModelError, VisionLanguageModel

QUESTION = "What is the colour of the cup?\n(A) red\n(B) blue\nAnswer with the option's letter."


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``folder(name)``: a published folder, made once."""
    made: dict[str, Path] = {}
    base = tmp_path_factory.mktemp("published")

    def make(name: str) -> Path:
        if name not in made:
            made[name] = published.write(LAYOUTS[name], base / name.replace(" ", "-"))
        return made[name]

    return make


_TOKENIZERS: dict[bytes, Any] = {}


def tokenizer_of_files(source: str, settings: bytes) -> Any:
    if settings not in _TOKENIZERS:
        _TOKENIZERS[settings] = AutoTokenizer.from_pretrained(source)
    return _TOKENIZERS[settings]


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """transformers' own processor of a folder, without videos."""
    check = ProcessorMixin.check_argument_for_proper_class

    def no_videos(self: ProcessorMixin, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else check(self, name, argument)

    class NoVideos:
        @classmethod
        def from_pretrained(cls, *args: Any, **options: Any) -> None:
            return None

    class OnceEach:
        """AutoTokenizer, which takes a second for each folder, on folders with equal files."""

        @classmethod
        def from_pretrained(cls, source: Path, **options: Any) -> Any:
            return tokenizer_of_files(str(source), (Path(source) / "tokenizer_config.json").read_bytes())

    known = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING
    classes = {name: known[name] for name in known.keys()} | {"video_processor": NoVideos, "tokenizer": OnceEach}
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", no_videos)
    monkeypatch.setattr(processing_utils, "MODALITY_TO_AUTOPROCESSOR_MAPPING", classes)
    return lambda folder: AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_folder_gives_the_official_prompts_and_is_saved_as_it_was_read(
    name: str, folder: Callable[[str], Path], official: Callable, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    layout = LAYOUTS[name]
    vlm = VisionLanguageModel.load(str(folder(name)), torch.float32)
    processor = official(folder(name))
    view = picture(12 * vlm.factor, 7 * vlm.factor)
    (prompt,) = vlm.encode([view], [QUESTION])
    chat = [{"role": "user", "content": [{"type": "image", "image": view}, {"type": "text", "text": QUESTION}]}]
    template = (
        None if processor.chat_template else processor.tokenizer.chat_template
    )  # the processor takes none from its tokenizer
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    expected = processor.apply_chat_template(chat, template, **options)
    assert prompt.ids.tolist() == expected["input_ids"][0].tolist()
    assert prompt.grids.tolist() == expected["image_grid_thw"].tolist() == [[1, 14, 24]]
    assert torch.equal(prompt.pixels, expected["pixel_values"])
    weights = published.weights_of(layout.family, layout.tied)
    for key, tensor in vlm.model.state_dict().items():
        same = "model.language_model.embed_tokens.weight" if layout.tied and key == "lm_head.weight" else key
        assert torch.equal(tensor, weights[same].float()), key
    assert vlm.end_tokens == {151643, 151645}  # also of a base model, whose tokenizer ends with 151643 alone
    least, most = published.PIXELS[layout.family]
    assert dict(vlm.image_processor.size) == {"shortest_edge": least, "longest_edge": most}
    vlm.save(tmp_path)
    _assert_saved_as_read(folder(name), tmp_path, vlm.tokenizer.chat_template)


def _assert_saved_as_read(before: Path, after: Path, template: str) -> None:
    """The files, keys and names that versions of transformers look for are those of the published folder; weights are
    float32 now."""
    templates = {"chat_template.jinja", "chat_template.json"}
    for path in before.rglob("*.*"):
        name = str(path.relative_to(before))
        if name in ("config.json", "processor_config.json") or name in templates or name.startswith("model"):
            continue
        if name == "preprocessor_config.json":  # its pixel limits are those of the view that the policy was trained on
            sizes = ("size", "min_pixels", "max_pixels")
            kept = [
                {k: v for k, v in json.loads(p.read_text()).items() if k not in sizes} for p in (path, after / name)
            ]
            assert kept[0] == kept[1]
            continue
        if name == "generation_config.json":  # ends answers, greedy, so that plain transformers gives ours
            ends = [json.loads(p.read_text())["eos_token_id"] for p in (path, after / name)]
            published_ends, saved_ends = ({end} if isinstance(end, int) else set(end) for end in ends)
            assert published_ends <= saved_ends
            continue
        assert (after / name).read_bytes() == path.read_bytes(), name
    read = json.loads((before / "config.json").read_text().replace('dtype": "bfloat16"', 'dtype": "float32"'))
    assert json.loads((after / "config.json").read_text()) == read
    names = {key for path in before.glob("*.safetensors") for key in safe_open(path, "pt").keys()}
    assert {key for path in after.glob("*.safetensors") for key in safe_open(path, "pt").keys()} == names
    _, seen = AutoModelForImageTextToText.from_pretrained(after, output_loading_info=True)
    assert not any(seen.values())
    assert (after / "chat_template.jinja").read_text() == template
    found = ProcessorMixin.get_processor_dict(after)[0]["chat_template"]  # that of transformers 5
    if (before / "additional_chat_templates").exists():
        assert (
            found == {"default": template, "tool_use": published.TEXT_ONLY}
            and not (after / "chat_template.json").exists()
        )
    else:
        assert (
            found == json.loads((after / "chat_template.json").read_text())["chat_template"] == template
        )  # up to 4.51 as well


def test_saving_changes_neither_the_generation_config_nor_fails_for_a_wrong_one(
    make_vlm: Callable, tmp_path: Path
) -> None:
    """Trainers leave a temperature beside do_sample false, which transformers reads but does not write."""
    make_vlm("qwen3_vl").save(tmp_path / "a")
    own = json.dumps(
        {"do_sample": False, "temperature": 0.7, "use_cache": False, "num_beams": 4, "eos_token_id": [2, 0]}
    )
    (tmp_path / "a/generation_config.json").write_text(own)
    vlm = VisionLanguageModel.load(str(tmp_path / "a"), torch.float32)
    vlm.save(tmp_path / "b")
    assert (tmp_path / "b/generation_config.json").read_text() == own
    assert vlm.model.generation_config.num_beams == 4


# ---------------------------------------------------------------------- the whole way

SMALL: dict[str, Any] = dict(
    sensing_side=56, crop_side=56, max_new_tokens=6, task_max_new_tokens=4, max_view_pixels=56 * 112
)


@pytest.mark.parametrize("name", ["Qwen2.5-VL-7B", "Qwen3-VL-4B"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
def test_a_published_model_learns_and_its_checkpoint_is_a_model_of_the_same_layout(
    name: str, folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in rank_environment(0, 1).items():
        monkeypatch.setenv(key, value)
    prepare(monkeypatch)
    train.main(TrainConfig(
        model=str(folder(name)), ds_config=finely_sharded(tmp_path), steps=2, save_every=2, prompts=1, micro_prompts=1, group=2, lr=0.01,
        warmup=0, samples_every=0, eval_examples=0, output_dir=str(tmp_path / "run"), **SMALL,
    ))  # fmt: skip
    rows, checkpoint = rows_of(tmp_path / "run"), tmp_path / "run/checkpoint-2"
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["kl"] == 0 < rows[1][
        "kl"
    ]  # the reference has the same weights at first
    _assert_saved_as_read(folder(name), checkpoint, (checkpoint / "chat_template.jinja").read_text())
    learned = VisionLanguageModel.load(str(checkpoint), torch.float32).model.state_dict()
    before = published.weights_of(LAYOUTS[name].family, LAYOUTS[name].tied)
    moved = {key for key in before if not torch.equal(before[key].float(), learned[key])}
    assert {f"model.language_model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)} <= moved
    assert all("language_model" in key for key in moved)


def test_the_published_policy_answers_a_question_and_looks_at_a_photo(
    folder: Callable[[str], Path], tmp_path: Path, picture: Callable[..., Image.Image], capsys: pytest.CaptureFixture
) -> None:
    """As evaluate.py runs a question of V* and --image with ACTIVE-O3's release."""
    vstar_set(tmp_path / "data")
    asked = dict(checkpoint=(str(folder("ACTIVE-O3")),), output_dir=str(tmp_path / "out"), **SMALL)
    evaluate.main(
        EvalConfig(benchmark=("vstar",), data_root=str(tmp_path / "data"), methods=("active",), limit=1, **asked)
    )
    (row, *_) = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert (row["benchmark"], row["n"]) == ("vstar", 1)
    picture(120, 80).save(tmp_path / "photo.png")
    evaluate.main(EvalConfig(image=str(tmp_path / "photo.png"), question="What colour is the cup?", **asked))
    assert len(list((tmp_path / "out").glob("photo*.png"))) == 1
    assert "photo.png.looked.html" in capsys.readouterr().out


# ---------------------------------------------------------------------- what cannot be used


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    """Write some keys of a json file anew."""
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def weighed(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Write the weights anew."""

    def write(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return write


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return weighed(lambda weights: {name.replace(old, new, 1): tensor for name, tensor in weights.items()})


def without(part: str) -> Callable[[Path], None]:
    return weighed(lambda weights: {name: tensor for name, tensor in weights.items() if part not in name})


def spoiled(weights: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    weights["model.language_model.norm.weight"][3] = value
    return weights


def grown(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["star", "circle"])
    tokenizer.save_pretrained(folder)


def without_end_token(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<|im_end|>", "<|end|>"))


def texts_only(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(published.TEXT_ONLY)
    edited("tokenizer_config.json", chat_template="{{ broken")(folder)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "layer": (without("language_model.layers.1."), r"lacks 11 of \d+ weights, model.language_model.layers.1.input_layernorm.* and 8 more\.$"),
    "tower": (without("visual"), r"lacks \d+ of \d+ weights, model.visual.* and \d+ more\.$"),
    "ddp": (renamed("model.", "module.model."),
            r"has module.model.* instead: saved inside torch's DistributedDataParallel, take 'module\.' off every name"),
    "compiled": (renamed("model.", "_orig_mod.model."), "saved inside torch.compile, take '_orig_mod.' off"),
    "head": (lambda folder: (edited("config.json", tie_word_embeddings=False)(folder), edited("config.json", text_config={
        **json.loads((folder / "config.json").read_text())["text_config"], "tie_word_embeddings": False})(folder)),
        r"lacks 1 of \d+ weights, lm_head.weight"),
    "shape": (weighed(lambda weights: weights | {"model.language_model.norm.weight": torch.ones(7)}),
              r"model.language_model.norm.weight has the shape \(7,\), and config.json means \(64,\)"),
    "nan": (weighed(lambda weights: spoiled(weights, float("nan"))), "not finite, model.language_model.norm.weight;"),
    "infinite": (weighed(lambda weights: spoiled(weights, float("inf"))), "not finite, model.language_model.norm.weight;"),
    "more layers": (weighed(lambda weights: weights | {name.replace("layers.2.", "layers.3."): tensor.clone() for name, tensor in
                                                       weights.items() if "language_model.layers.2." in name}),
                    "has 11 weights that config.json leaves no place for, model.language_model.layers.3"),
    "adapter not merged": (weighed(lambda weights: weights | {"model.visual.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 32)}),
                           "leaves no place for, model.visual.blocks.0.attn.qkv.lora_A.weight"),
    "quantised": (edited("config.json", quantization_config={"quant_method": "awq", "bits": 4}),
                  r"is quantised \(awq\); name the model it was made from"),
    "vocabulary": (grown, "the tokenizer has tokens up to 513 and the model's embedding 512 rows; copy the tokenizer"),
    "image token": (edited("config.json", image_token_id=7), r"<\|image_pad\|> is 5 in the tokenizer and 7 in config.json"),
    "no end token": (without_end_token,
                     r"<\|im_end\|> is missing in the tokenizer; copy the tokenizer's files"),
    "text templates": (texts_only,
                       r"no chat template with a place for a picture \(chat_template.jinja has none; tokenizer_config.json fails with TemplateSyntaxError: .*\); copy"),
    "unknown processor": (edited("preprocessor_config.json", image_processor_type="Qwen2_5_VLImageProcessor"),
                          r'preprocessor_config.json names the image processor Qwen2_5_VLImageProcessor; write '
                          r'"image_processor_type": "Qwen2VLImageProcessor" instead'),
    "other patches": (edited("preprocessor_config.json", patch_size=14),
                      "patch_size is 14 in preprocessor_config.json and 8 in config.json"),
    "odd end": (edited("generation_config.json", eos_token_id=["x", 3]), "eos_token_id is 'x' in generation_config.json; write the number of a token"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "has no config.json that can be used: it holds no json object"),
    "code of its own": (edited("config.json", model_type="own_vl", auto_map={"AutoConfig": "own.Config"}),
                        "is a own_vl model; supported are"),
    "adapter beside": (lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}'),
                       r"has whole weights \(model.safetensors\) and an adapter beside them; take adapter_config.json away"),
}  # fmt: skip


@pytest.fixture(scope="session")
def saved(make_vlm: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small healthy folder."""
    folder = tmp_path_factory.mktemp("healthy")
    make_vlm("qwen3_vl").save(folder)
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_one_sentence(
    fault: str, saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    spoil, sentence = FAULTS[fault]
    shutil.copytree(saved, tmp_path / "model")
    spoil(tmp_path / "model")
    capfd.readouterr()
    with pytest.raises(ModelError, match=sentence) as caught:
        VisionLanguageModel.load(str(tmp_path / "model"), torch.float32)
    assert str(caught.value).startswith(str(tmp_path / "model")) and "\n" not in str(caught.value)
    assert "REPORT" not in capfd.readouterr().err


def test_code_in_the_folder_is_neither_run_nor_saved(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "a")
    (tmp_path / "a/own.py").write_text("raise SystemExit('code of the checkpoint was run')")
    for name, entry in (
        ("config.json", "AutoModelForImageTextToText"),
        ("preprocessor_config.json", "AutoImageProcessor"),
    ):
        edited(name, auto_map={entry: "own.Own"})(tmp_path / "a")
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})(tmp_path / "a")
    VisionLanguageModel.load(str(tmp_path / "a"), torch.float32).save(tmp_path / "b")
    assert not any("auto_map" in path.read_text() for path in (tmp_path / "b").glob("*.json"))


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
HUNGRY = (
    "{% set ns = namespace(x='a' * 1000) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
)
TEMPLATES = {
    "endless": (ENDLESS, "the chat template in chat_template.jinja does not come to an end; copy it from the original model"),
    "endless in later turns": ("{% if messages|length > 1 %}" + ENDLESS + "{% endif %}{{ '<|image_pad|>' * (messages[-1].content|length - 1) }}",
                               "the chat template in chat_template.jinja does not come to an end"),
    "hungry": (HUNGRY, r"\(chat_template.jinja fails with MemoryError\); copy"),
    "a billion letters": ("{{ '%10000000000d' % 1 }}", r"chat_template.jinja fails with MemoryError"),
    "raises": ("{{ raise_exception('only\nfor us') }}", r"\(chat_template.jinja fails with TemplateError: only for us\)"),
    "undefined": ("{{ nothing.of.this }}", r"\(chat_template.jinja fails with UndefinedError: 'nothing' is undefined\)"),
    "deep": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", r"chat_template.jinja fails with (RecursionError|MemoryError)"),
    "reaches for Python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", r"chat_template.jinja fails with SecurityError"),
    "one picture for two": ("{{ '<|image_pad|>' if (messages[-1].content|length) > 1 }}", r"\(chat_template.jinja has none\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_chat_template_that_loops_or_errs_is_one_sentence(
    kind: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, sentence = TEMPLATES[kind]
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(processes, "LIMIT_SECONDS", 2.0)
    monkeypatch.setattr(processes, "LIMIT_BYTES", 2**28)
    with pytest.raises(ModelError, match=sentence) as caught:
        model_files.picture_template(str(tmp_path), tokenizer)
    assert "\n" not in str(caught.value)


def test_work_in_a_process_that_can_be_ended(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    assert processes.run_limited(lambda: [1, "a" * 1_000_000, {"b": None}]) == [1, "a" * 1_000_000, {"b": None}]
    here = os.getpid()
    assert processes.run_limited(os.getpid) != here
    for work, said in ((lambda: {}["x"], "KeyError: 'x'"), (lambda: sys.exit(3), "SystemExit: 3"), (lambda: os._exit(3), "its process was ended"),
                       (lambda: os.kill(os.getpid(), 9), "its process was ended"), (lambda: object(), "TypeError")):  # fmt: skip
        with pytest.raises(processes.Failed, match=said):
            processes.run_limited(work)
    monkeypatch.setattr(processes, "LIMIT_SECONDS", 0.5)
    with pytest.raises(TimeoutError):
        processes.run_limited(lambda: time.sleep(60))
    with pytest.raises(ChildProcessError):  # none is left behind
        os.waitpid(-1, os.WNOHANG)
    assert capfd.readouterr() == ("", "")


def test_a_process_that_cannot_be_copied_does_the_work_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", no_room)
    assert processes.run_limited(os.getpid) == os.getpid()
    with pytest.raises(processes.Failed, match="KeyError: 'x'"):
        processes.run_limited(lambda: {}["x"])


def test_a_template_is_tried_once_in_a_process(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the second model the process is large: its copy would take time, and may not be possible."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(tokenizer.chat_template + "{# once #}")
    found = model_files.picture_template(str(tmp_path), tokenizer)
    monkeypatch.setattr(processes, "run_limited", lambda work: pytest.fail("it was tried"))
    assert model_files.picture_template(str(tmp_path), tokenizer) == found == tokenizer.chat_template + "{# once #}"


def test_what_loops_ends_also_if_nothing_is_there_to_end_it() -> None:
    """As after a kill -9 of the process that waits for it."""
    program = """
import os
from activeo3 import processes
processes.LIMIT_SECONDS = 1.0
def loop():
    os.write(1, str(os.getpid()).encode())
    while True: pass
processes.select.select = lambda *_: os._exit(9)
processes.run_limited(loop)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60
    )  # until the pipe is closed by both
    assert ran.returncode == 9 and ran.stdout.isdigit()


def test_templates_in_a_list_of_names(saved: Path, tmp_path: Path, tokenizer: Any) -> None:
    """As transformers 4.43 saved several: the one named "default" is looked at first, and what is no template is passed
    over."""
    shutil.copytree(saved, tmp_path / "a")
    (tmp_path / "a/chat_template.jinja").unlink()
    named = {"tool_use": published.TEXT_ONLY, "default": tokenizer.chat_template}
    several = [*({"name": name, "template": text} for name, text in named.items()), {"name": "x"}, 7]
    edited("tokenizer_config.json", chat_template=several)(tmp_path / "a")
    assert [text for _, text in model_files.templates(str(tmp_path / "a"))] == [
        tokenizer.chat_template,
        published.TEXT_ONLY,
    ]


def test_pixel_limits_in_every_spelling(saved: Path, tmp_path: Path) -> None:
    """transformers 4.45 to 4.48 saved the limits inside ``size``."""
    settings = json.loads((saved / "preprocessor_config.json").read_text())
    for number, size in enumerate(
        ({"min_pixels": 3136, "max_pixels": 50176}, {"shortest_edge": 3136, "longest_edge": 50176})
    ):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        more = {"min_pixels": 3136, "max_pixels": 50176} if number == 0 else {}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings | more | {"size": size}))
        vlm = VisionLanguageModel.load(str(folder), torch.float32)
        assert (vlm.image_processor.size["shortest_edge"], vlm.image_processor.size["longest_edge"]) == (3136, 50176)
        assert vlm.encode([Image.new("RGB", (32, 16))], ["?"])[0].grids.tolist() == [
            [1, 2, 4]
        ]  # a view keeps the size that was asked for
