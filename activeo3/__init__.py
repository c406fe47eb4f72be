"""activeo3 teaches a vision-language model where to look."""

import os

# Before torch sets up its allocator. Rollouts and updates ask for tensors of ever new sizes, which leave gaps between
# fixed blocks.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name's older spelling
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
