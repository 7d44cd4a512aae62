from __future__ import annotations

import pytest

from gtpo.lab.tiny.model import make_model


@pytest.fixture(scope="session")
def byte_model_dir(tmp_path_factory, byte_tokenizer):
    """A model that no test looks at the words of, and a tokenizer that can say any text."""
    folder = tmp_path_factory.mktemp("byte-model")
    make_model(byte_tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder
