"""activeo3 teaches a vision-language model where to look.

In a notebook: ``activeo3.load(checkpoint).look(image, query)`` (notebook.py).
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activeo3.notebook import Answer, Look, Policy, load

__all__ = ["Answer", "Look", "Policy", "load"]

# Before torch sets up its allocator. Rollouts and updates ask for tensors of ever new sizes, which leave gaps between
# fixed blocks.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name's older spelling
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def __getattr__(name: str) -> Any:
    """The names of ``__all__``, imported when they are wanted: torch takes seconds, and wrong flags are answered
    before."""
    if name in __all__:
        from activeo3 import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'activeo3' has no attribute {name!r}")
