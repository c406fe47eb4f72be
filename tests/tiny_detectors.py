"""Folders of tiny detectors with random weights, of the classes that transformers has for each published one, with the
image processor and tokenizer that their folders on the hub have."""

import json
from pathlib import Path
from typing import Any, Callable

import torch
import transformers as hf
from transformers.models.deformable_detr.image_processing_pil_deformable_detr import DeformableDetrImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

LABELS = dict(enumerate(["red star", "person", "N/A", "couch", "blue disc"]))
SQUARE, EDGES = {"height": 64, "width": 64}, {"shortest_edge": 64, "longest_edge": 128}
ATTENTION = dict(encoder_attention_heads=2, decoder_attention_heads=2)
DETR = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=12,
            **ATTENTION)  # fmt: skip
TEXT = dict(vocab_size=191, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, bos_token_id=189, eos_token_id=190,  # the highest: where OWL-ViT reads a text
    pad_token_id=0)  # fmt: skip


def resnet() -> Any:
    return hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
                           out_features=["stage4"])  # fmt: skip


def resnet3() -> Any:
    return hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
                           out_features=["stage2", "stage3", "stage4"])  # fmt: skip


def clip_tokenizer() -> Any:
    letters = [chr(c) for c in range(33, 127)]
    words = ["<|pad|>", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return hf.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], pad_token="<|pad|>", model_max_length=32
    )


def detr() -> tuple[Any, Any]:
    return hf.DetrConfig(
        use_timm_backbone=False, backbone_config=resnet(), id2label=LABELS, **DETR
    ), DetrImageProcessorPil(size=EDGES)


def conditional_detr() -> tuple[Any, Any]:
    return hf.ConditionalDetrConfig(
        use_timm_backbone=False, backbone_config=resnet(), id2label=LABELS, **DETR
    ), DetrImageProcessorPil(size=EDGES)


def table_transformer() -> tuple[Any, Any]:
    return hf.TableTransformerConfig(
        use_timm_backbone=False, backbone_config=resnet(), id2label=LABELS, **DETR
    ), DetrImageProcessorPil(size=EDGES)


def deformable_detr() -> tuple[Any, Any]:
    config = hf.DeformableDetrConfig(
        use_timm_backbone=False,
        backbone_config=resnet3(),
        id2label=LABELS,
        num_feature_levels=3,
        **(DETR | dict(d_model=32, decoder_layers=2)),
    )
    return config, DeformableDetrImageProcessorPil(size=EDGES)


def yolos() -> tuple[Any, Any]:
    config = hf.YolosConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                            image_size=[64, 64], patch_size=16, num_detection_tokens=12, id2label=LABELS)  # fmt: skip
    return config, YolosImageProcessorPil(size=EDGES)


def _rt_detr(config_class: Any, decoder_layers: int = 1) -> tuple[Any, Any]:
    backbone = hf.RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
                                     out_features=["stage2", "stage3", "stage4"])  # fmt: skip
    config = config_class(backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_layers=1,
                          encoder_ffn_dim=16, d_model=16, num_queries=12, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
                          decoder_layers=decoder_layers, id2label=LABELS, num_denoising=0, **ATTENTION)  # fmt: skip
    return config, RTDetrImageProcessorPil(size=SQUARE)


def rt_detr() -> tuple[Any, Any]:
    return _rt_detr(hf.RTDetrConfig)


def rt_detr_v2() -> tuple[Any, Any]:
    return _rt_detr(hf.RTDetrV2Config, decoder_layers=2)


def d_fine() -> tuple[Any, Any]:
    backbone = hf.HGNetV2Config(embedding_size=8, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], stem_channels=[3, 8, 8],
                                stage_in_channels=[8, 8, 8, 16], stage_mid_channels=[8, 8, 8, 8], stage_out_channels=[8, 8, 16, 16],
                                stage_num_blocks=[1, 1, 1, 1], stage_downsample=[False, True, True, True], stage_light_block=[False, False, True, True],
                                stage_kernel_size=[3, 3, 5, 5], stage_numb_of_layers=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"])  # fmt: skip
    config = hf.DFineConfig(backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_layers=1,
                            encoder_ffn_dim=16, d_model=16, num_queries=12, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
                            decoder_layers=2, decoder_n_points=[2, 2, 2], id2label=LABELS, num_denoising=0, depth_mult=0.3, **ATTENTION)  # fmt: skip
    return config, RTDetrImageProcessorPil(size=SQUARE)


def rf_detr() -> tuple[Any, Any]:
    backbone = dict(model_type="rf_detr_dinov2", hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=16,
                    num_windows=2, out_indices=[2, 4])  # fmt: skip
    config = hf.RfDetrConfig(backbone_config=backbone, d_model=16, decoder_layers=1, decoder_self_attention_heads=2,
                             decoder_cross_attention_heads=2, decoder_ffn_dim=16, num_queries=12, id2label=LABELS)  # fmt: skip
    return config, DetrImageProcessorPil(size=SQUARE)


def owlvit() -> tuple[Any, Any]:
    return _owl(hf.OwlViTConfig), OwlViTImageProcessorPil(size=SQUARE)


def owlv2() -> tuple[Any, Any]:
    return _owl(hf.Owlv2Config), Owlv2ImageProcessorPil(size=SQUARE)


def _owl(config_class: Any) -> Any:
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16
    )
    return config_class(text_config=TEXT, vision_config=vision, projection_dim=16)


def omdet_turbo() -> tuple[Any, Any]:
    backbone = hf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_indices=[2, 3, 4]
    )
    config = hf.OmDetTurboConfig(
        text_config=hf.CLIPTextConfig(**TEXT), backbone_config=backbone, use_timm_backbone=False, image_size=64,
        apply_layernorm_after_vision_backbone=False,  # it expects the layout of timm
        text_projection_in_dim=16, text_projection_out_dim=16, class_embed_dim=16, task_encoder_hidden_dim=16, num_queries=12,
        encoder_hidden_dim=32, vision_features_channels=[32, 32, 32], encoder_in_channels=[16, 32, 64], encoder_attention_heads=2,
        encoder_dim_feedforward=16, decoder_hidden_dim=32, decoder_num_heads=2, decoder_num_layers=2, decoder_dim_feedforward=16,
    )  # fmt: skip
    return config, DetrImageProcessorPil(size=SQUARE, do_pad=False)


OPEN: dict[str, Callable[[], tuple[Any, Any]]] = {"owlvit": owlvit, "owlv2": owlv2, "omdet-turbo": omdet_turbo}
CLOSED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "detr": detr, "conditional_detr": conditional_detr, "table-transformer": table_transformer, "deformable_detr": deformable_detr,
    "yolos": yolos, "rt_detr": rt_detr, "rt_detr_v2": rt_detr_v2, "d_fine": d_fine, "rf_detr": rf_detr,
}  # fmt: skip


def save(kind: str, folder: Path) -> None:
    """Make the folder of a detector of one of OPEN and CLOSED."""
    config, image_processor = (OPEN | CLOSED)[kind]()
    auto = hf.AutoModelForZeroShotObjectDetection if kind in OPEN else hf.AutoModelForObjectDetection
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = auto.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if "owl" in kind and "_head" in name:
                parameter.data *= 0.25  # drawn so wide that all is 0 or 1
            elif parameter.ndim > 1:  # boxes start all alike, and deaf to picture and words
                parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    if kind == "rf_detr":  # transformers has its image processor for torchvision only
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"image_processor_type": "RfDetrImageProcessor"}))
    if kind in OPEN:
        clip_tokenizer().save_pretrained(folder)
