"""Real problem files, if there are any: in the folder GTPO_DATA_DIR or in `shared/data` beside the repo."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("GTPO_DATA_DIR") or Path(__file__).parents[2].parent / "shared" / "data")
    if not (folder / "gsm8k_train.jsonl").is_file():
        pytest.skip(f"no problem files in {folder}; set GTPO_DATA_DIR to a folder that has them")
    return folder
