"""Where real data sets are, for tests that read them: the folder that ACTIVEO3_REAL_DATA names, or, beside
the repository, shared/data. A test skips without them."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parent.parent.parent / "shared" / "data"


def real_file(name: str) -> Path:
    """A real file by its path below the folder; skips the test that asks if it is not there."""
    path = Path(os.environ.get("ACTIVEO3_REAL_DATA", "") or BESIDE) / name
    if not path.is_file():
        pytest.skip(f"there is no {path}; ACTIVEO3_REAL_DATA names the folder of real data")
    return path
