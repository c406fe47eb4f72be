"""What the supported families of models do differently, in one table."""

FAMILIES = {"qwen2_5_vl": "pixels", "qwen3_vl": "thousandths"}
"""The architectures that are supported, and the unit in which each writes coordinates."""
