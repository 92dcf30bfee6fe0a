from pathlib import Path

import pytest
from coco_folder import CocoFolder


@pytest.fixture
def coco(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path)
