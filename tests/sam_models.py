"""Tiny SAM models with random weights."""

from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]

DECODER = dict(mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16)


def sam_1() -> SamModel:
    vision = dict(hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
                  window_size=4, global_attn_indexes=[1], num_pos_feats=8, mlp_dim=16, initializer_range=0.1)  # fmt: skip
    prompt = dict(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    return SamModel(
        SamConfig(
            vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER | dict(hidden_size=16)
        )
    )


def sam_2() -> Sam2Model:
    hiera = dict(model_type="sam2_hiera_det_model", hidden_size=8, num_attention_heads=1, image_size=[64, 64],
                 blocks_per_stage=[1, 2, 1, 1], embed_dim_per_stage=[8, 16, 24, 32], num_attention_heads_per_stage=[1, 1, 2, 2],
                 window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[2],
                 window_positional_embedding_background_size=[4, 4])  # fmt: skip
    vision = dict(model_type="sam2_vision_model", backbone_config=hiera, backbone_channel_list=[32, 24, 16, 8],
                  backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=32)  # fmt: skip
    prompt = dict(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4)
    return Sam2Model(
        Sam2Config(
            vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER | dict(hidden_size=32)
        )
    )
