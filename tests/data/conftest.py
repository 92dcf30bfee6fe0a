from pathlib import Path

import pytest
from coco_folder import CocoFolder
from panoptic_folder import PanopticFolder


@pytest.fixture
def coco(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path)


@pytest.fixture
def panoptic(tmp_path: Path) -> PanopticFolder:
    return PanopticFolder(tmp_path)
