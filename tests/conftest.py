import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real test data named by SR_SHARED; tests that need it skip where it is missing."""
    folder = ROOT / os.environ.get("SR_SHARED", "../shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set SR_SHARED to the folder that holds data/")
    return folder
