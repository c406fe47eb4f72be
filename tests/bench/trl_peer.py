"""TRL's GRPOTrainer with HF generate as a contender: its own tokenising, sampling, scoring and loss.

What it includes: ``_prepare_inputs`` (chat template and image processor, ``generate``, rewards, advantages,
the reference model that it loads itself) and ``compute_loss`` + backward, all as ``training_step`` runs them;
the optimiser is the one that all contenders share. Left out in its favour: data loader, logging, callbacks.
Settings are those of the comparison, not TRL's defaults: the paper's loss (``grpo``, beta 0.04, plain k3), no
autocast, one update per rollout, no gradient checkpointing unless the others have it.

TRL wants the model's processor, which transformers builds only if torchvision is installed, for videos alone.
``PictureProcessor`` is that processor without its video part, and nothing here needs torchvision.
"""

import copy
from contextlib import nullcontext
from typing import Any, Sequence

import torch
from datasets import Dataset
from setting import BETA, CLIP, GRAD_CLIP, QUESTION, Point, Scored, Setting, Stopwatch, pictures, reward
from torch import Tensor
from transformers import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer


class PictureProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor for text and pictures: its parts are the arguments of ``__init__``."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class TimedTrainer(GRPOTrainer):
    """The trainer with a stopwatch around its own methods, and a place to put given answers."""

    clock: Stopwatch | None = None
    given: list[list[int]] | None = None

    def _phase(self, name: str):
        return self.clock(name) if self.clock else nullcontext()

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._phase("generate"):
            return super()._generate(*args, **kwargs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        return (self.given, None) if self.given else super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self._phase("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        with self._phase("reference") if model is self.ref_model else nullcontext():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.clock:
            self.clock.start("update")  # ended when the weights have moved
        return super().compute_loss(*args, **kwargs)


def even_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The common reward as TRL calls it."""
    return [reward(ids) for ids in completion_ids]


class Trl:
    """GRPOTrainer, with HF generate and a reference model of its own."""

    name = "trl"

    def __init__(self, setting: Setting, point: Point) -> None:
        self.setting, self.point = setting, point
        vlm = setting.policy
        views = pictures(point.prompts, point.image_tokens)
        prompt = [{"role": "user", "content": QUESTION}]
        self.batch = [{"prompt": prompt, "image": view} for view in views for _ in range(point.group)]
        self.pieces = point.prompts // point.micro
        config = GRPOConfig(
            output_dir=str(setting.folder / "trl"),
            per_device_train_batch_size=point.micro * point.group,
            gradient_accumulation_steps=self.pieces,
            num_generations=point.group,
            max_completion_length=point.tokens,
            generation_kwargs={"min_new_tokens": point.tokens, "suppress_tokens": list(vlm.suppressed_ids)},
            temperature=1.0,
            loss_type="grpo",
            beta=BETA,
            epsilon=CLIP,
            use_bias_correction_kl=False,
            max_grad_norm=GRAD_CLIP,
            bf16=False,  # no autocast: the weights have the precision of the comparison themselves
            gradient_checkpointing=setting.checkpointing,
            use_cpu=vlm.model.device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
        )
        # A model object of its own, because TRL changes its forward; the parameters are the shared ones.
        shared = {id(parameter): parameter for parameter in vlm.model.parameters()}
        model = copy.deepcopy(vlm.model, shared)
        tokenizer = vlm.tokenizer
        self.trainer = TimedTrainer(
            model=model,
            reward_funcs=even_ids,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in self.batch]),
            processing_class=PictureProcessor(vlm.image_processor, tokenizer, chat_template=tokenizer.chat_template),
            optimizers=(setting.optimizer, None),
        )
        self.trainer.current_gradient_accumulation_steps = self.pieces  # train() would set it

    def step(self, clock: Stopwatch) -> None:
        """The trainer's own ``training_step`` per piece, then the shared optimiser's step."""
        self.trainer.clock = clock
        for _ in range(self.pieces):
            self.trainer.training_step(self.trainer.model, self.batch, None)
        self.setting.apply()
        clock.stop("update")
        self.trainer.clock = None

    def score(self, answers: Sequence[Sequence[tuple[int, ...]]], advantage: Tensor) -> Scored:
        """TRL's whole path for given answers, its reference included; only the advantages are replaced."""
        trainer, point = self.trainer, self.point
        trainer.model.train()
        trainer.given = [list(ids) for group in answers for ids in group]
        inputs = trainer._generate_and_score_completions(self.batch)
        trainer.given = None
        inputs["advantages"] = advantage.flatten().to(trainer.accelerator.device)
        ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
        visual = {name: inputs[name] for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")}
        with torch.no_grad():
            logp, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, point.tokens, **visual)
        shape = (point.prompts, point.group, point.tokens)
        trainer.current_gradient_accumulation_steps = 1  # all rows at once
        loss = trainer.compute_loss(trainer.model, inputs)
        trainer.accelerator.backward(loss)
        trainer.current_gradient_accumulation_steps = self.pieces
        ref_logp = inputs["ref_per_token_logps"]
        return Scored(logp.view(shape), ref_logp.view(shape), float(loss.detach()), self.setting.take_gradients())
