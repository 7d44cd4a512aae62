"""Silences messages of other libraries that a user of the commands can do nothing about."""

from __future__ import annotations

import logging
import os
import warnings

from gtpo._terminal import is_terminal

_TIED = "There were missing keys in the checkpoint model loaded: ['lm_head.weight']"


def quieten() -> None:
    """Set what must be set before those libraries are imported."""
    # TRL uses gradient_checkpointing and its methods, about whose names transformers 5.23 warns.
    warnings.filterwarnings("ignore", message=r"`\w*gradient_checkpointing\w*` is deprecated", category=FutureWarning)
    # An output layer that shares the weights of the embeddings is not saved, and so missed on resume. Damaged
    # checkpoints are found by their manifest.
    logging.getLogger("transformers.trainer").addFilter(lambda record: not record.getMessage().startswith(_TIED))
    if not is_terminal():
        # Bars of loading and downloading are redrawn many times a second: in a file each drawing is a line.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
