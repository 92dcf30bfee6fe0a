import pytest

from maskwright.data.orientation import choose_frame, shows_upright_pictures

STORED, UPRIGHT = (90, 120), (120, 90)


@pytest.mark.parametrize("orientation", [None, 0, 1, 9, 65536])
def test_a_picture_without_an_orientation_has_one_frame(orientation):
    frame = choose_frame(STORED, orientation, listed=(5, 5))
    assert (frame.upright, frame.size, frame.certain) == (True, STORED, True)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize(("listed", "upright"), [(STORED, False), (UPRIGHT, True)])
def test_the_size_decides(orientation, listed, upright):
    frame = choose_frame(STORED, orientation, listed)
    assert (frame.upright, frame.size, frame.certain) == (upright, listed, True)
    assert choose_frame(STORED, orientation, listed, reach=(80.0, 80.0)) == frame  # fits both


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize(("reach", "upright"), [((85.0, 118.0), True), ((118.0, 85.0), False)])
@pytest.mark.parametrize("listed", [None, STORED, UPRIGHT, (7, 7)])
def test_boxes_that_fit_one_frame_only_decide(orientation, reach, upright, listed):
    frame = choose_frame(STORED, orientation, listed, reach)
    assert (frame.upright, frame.size, frame.certain) == (upright, UPRIGHT if upright else STORED, True)


def test_boxes_may_reach_two_pixels_beyond():
    assert not choose_frame(STORED, 6, STORED, reach=(80.0, 92.0)).upright
    assert choose_frame(STORED, 6, STORED, reach=(80.0, 92.5)).upright


@pytest.mark.parametrize(
    ("stored", "orientation"), [(STORED, 2), (STORED, 3), (STORED, 4), ((90, 90), 6), ((90, 90), 3)]
)
def test_where_nothing_decides_the_picture_is_upright_and_that_is_said(stored, orientation):
    frame = choose_frame(stored, orientation, listed=stored, reach=(80.0, 80.0))
    assert (frame.upright, frame.size, frame.certain) == (True, stored, False)
    assert f"EXIF orientation {orientation}" in frame.reason


def test_boxes_that_fit_both_frames_do_not_decide_without_a_size():
    frame = choose_frame(STORED, 6, reach=(80.0, 80.0))
    assert (frame.upright, frame.size, frame.certain) == (True, UPRIGHT, False)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_rule_overrules_all_evidence(orientation):
    upright = choose_frame(STORED, orientation, STORED, (118.0, 85.0), "upright")
    assert (upright.upright, upright.size, upright.certain) == (True, UPRIGHT if orientation == 6 else STORED, True)
    stored = choose_frame(STORED, orientation, UPRIGHT, (85.0, 118.0), "stored")
    assert (stored.upright, stored.size, stored.certain) == (False, STORED, True)


def test_label_studio_names_itself():
    assert shows_upright_pictures({"info": {"contributor": "Label Studio"}})
    assert not shows_upright_pictures({"info": {"contributor": "COCO Consortium"}})
    assert not shows_upright_pictures({"info": None})
