"""Where things are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where weights, features and fetched data are kept between runs: $VITSEG_CACHE, else
    ~/.cache/vitseg.
    """
    return Path(os.environ.get("VITSEG_CACHE", "~/.cache/vitseg")).expanduser()
