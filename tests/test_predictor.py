"""Predictor: any picture, checked boxes, encode once and prompt many times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_deep_marc
import small_max_deeplab
import torch
from PIL import Image
from torch import nn

import maskwright
from maskwright.apps.predict import PredictOptions, predict_files
from maskwright.errors import UserError
from maskwright.predictor import Predictor, check_boxes, choose_device, resolve_precision


@pytest.fixture
def predictor(ellipse_model) -> Predictor:
    return Predictor(ellipse_model, "cpu")


def photo(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_every_kind_of_image_gives_the_same_masks(predictor: Predictor, tmp_path: Path):
    image = photo()
    image.save(tmp_path / "photo.png")
    array = np.asarray(image)
    kinds = [image, array, torch.tensor(array).permute(2, 0, 1), tmp_path / "photo.png", str(tmp_path / "photo.png")]
    for kind in kinds:
        prediction = predictor.predict(kind, [[4, 2, 24, 22]])
        assert prediction.image_size == (30, 40)
        (mask,) = prediction.masks
        # A circle of radius 10 about (14, 12).
        assert mask[12, 14]
        assert not mask[3, 5]
        assert abs(int(mask.sum()) - 314) <= 12


def test_boxes_are_in_the_frame_of_the_upright_image(predictor: Predictor, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(40, 30).save(tmp_path / "turned.jpg", exif=exif)
    prediction = predictor.predict(tmp_path / "turned.jpg", [[0, 32, 20, 40]])
    assert prediction.image_size == (40, 30)
    assert len(prediction) == 1


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_boxes_are_no_masks(predictor: Predictor, boxes):
    prediction = predictor.predict(photo(), boxes)
    assert len(prediction) == 0
    assert prediction.masks.shape == (0, 30, 40)
    assert prediction.to_coco(1) == []


def test_encode_once_prompt_many_times(predictor: Predictor):
    features = predictor.encode(photo())
    first = predictor.masks_from_boxes(features, [[0, 0, 10, 10]])
    both = predictor.masks_from_boxes(features, [[5, 5, 20, 25], [0, 0, 10, 10]])
    assert predictor.model.encoded == 1
    assert torch.equal(first.masks[0], both.masks[1])
    assert torch.equal(both.masks, predictor.predict(photo(), [[5, 5, 20, 25], [0, 0, 10, 10]]).masks)


def test_what_exceeds_the_image_is_cut_off(predictor: Predictor):
    prediction = predictor.predict(photo(), [[-5, -5, 10, 10], [30, 20, 99, 99]])
    assert prediction.boxes.tolist() == [[0, 0, 10, 10], [30, 20, 40, 30]]


def test_labels_stay_with_their_boxes(predictor: Predictor):
    boxes = [[0, 0, 5, 5], [5, 5, 9, 9]]
    assert predictor.predict(photo(), boxes, labels=[3, 1]).labels.tolist() == [3, 1]
    assert predictor.predict(photo(), boxes).labels.tolist() == [-1, -1]
    assert predictor.predict(photo(), boxes, labels=np.array([-1, 5])).labels.tolist() == [-1, 5]


def test_of_one_mask_per_class_the_label_says_which():
    model = small_deep_marc.build(class_agnostic_masks=False)
    with torch.no_grad():
        model.network.roi_heads.box_predictor.cls_score.bias[1] = 50.0  # of any box the box head says: label 0
        model.network.mask_head.project_out.bias[:] = torch.tensor([0.0, 40.0, -40.0])
    prediction = Predictor(model, "cpu").predict(photo(), [[4, 2, 24, 22]] * 3, labels=[2, 1, -1])
    full, empty = (prediction.mask_probabilities > 0.5).float().mean((1, 2))[[1, 0]].tolist()
    assert (full, empty) == (1, 0)
    assert prediction.labels.tolist() == [2, 1, -1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([3], r"one label per box \(2\), but got \[3\]"),
        (torch.tensor(3), r"one label per box \(2\), but got 3"),
        (torch.tensor([[0], [1]]), r"label 0: expected 0\.\.1, a position .*, or -1 for no class, but got \[0\]"),
        (["disc", "ring"], "label 0: .* but got 'disc'"),
        ([0, 2], "label 1: .* but got 2"),
        (np.array([-2, 0]), "label 0: .* but got -2"),
        ([0, 0.5], "label 1: .* but got 0.5"),
        ([1, True], "label 1: .* but got True"),
    ],
)
def test_wrong_labels_are_named(ellipse_model, labels, words: str):
    ellipse_model.categories = ({"id": 1, "name": "disc"}, {"id": 5, "name": "ring"})
    predictor = Predictor(ellipse_model, "cpu")
    boxes = [[0, 0, 5, 5], [5, 5, 9, 9]]
    assert predictor.predict(photo(), boxes, labels=[1, -1]).labels.tolist() == [1, -1]
    with pytest.raises(UserError, match=words):
        predictor.predict(photo(), boxes, labels)
    assert predictor.model.encoded == 1  # told before the network's work


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_a_score_threshold_out_of_range_is_refused(predictor: Predictor, threshold: float):
    with pytest.raises(UserError, match=r"the score threshold must lie in 0\.\.1, but got "):
        predictor.predict(photo(), [[0, 0, 5, 5]], score_threshold=threshold)
    with pytest.raises(UserError, match=r"the score threshold must lie in 0\.\.1, but got "):
        predict_files(["no-such.jpg"], PredictOptions(score_threshold=threshold))


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[0, 0, 5, 5], [1, 2, 3]], "box 1: expected four numbers"),
        ([[0, 0, 5, "5"]], "box 0: expected four numbers"),
        ([7], "box 0: expected four numbers"),
        ([[0, 0, 5, True]], "box 0: expected four numbers"),
        ([[0, 0, float("nan"), 5]], "box 0: expected finite"),
        (np.array([[0, 0, np.inf, 5]]), "box 0: expected finite"),
        ([[0, 0, 5, 5], [9, 0, 5, 5]], "box 1: expected corners"),
        ([[3, 3, 3, 5]], "box 0: expected corners"),
        (np.zeros((2, 5)), r"shape \[N, 4\]"),
        (torch.zeros(4), r"shape \[N, 4\]"),
        ([[0, 0, 5, 5], [50, 0, 60, 5]], "box 1: .* outside of the image, which is 40 wide and 30 high"),
        ([[0, -9, 5, 0]], "box 0: .* outside"),
    ],
)
def test_wrong_boxes_are_named(predictor: Predictor, boxes, words: str):
    with pytest.raises(UserError, match=words):
        predictor.predict(photo(), boxes)
    assert predictor.model.encoded == 0  # told before the network's work


def test_check_boxes_keeps_values_and_order():
    rows = [[1.5, 2, 3, 4.25], [0, 0, 1, 1]]
    for boxes in (rows, np.array(rows), torch.tensor(rows), [np.array(row) for row in rows], [tuple(r) for r in rows]):
        checked = check_boxes(boxes)
        assert checked.dtype == torch.float32
        assert checked.tolist() == rows


def test_a_model_without_a_detector_asks_for_boxes(predictor: Predictor):
    with pytest.raises(UserError, match="needs boxes"):
        predictor.predict(photo())


def test_a_detector_is_used_without_boxes(ellipse_model):
    class Detecting(nn.Module):
        needs_boxes = False

        def forward(self, images, *, score_threshold, max_detections):
            assert not self.training
            boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]) * score_threshold
            return ellipse_model.masks_from_boxes(ellipse_model.encode(images), [boxes])

    predictor = Predictor(Detecting(), "cpu")
    assert predictor.predict(photo(), score_threshold=0.5).boxes.tolist() == [[0, 0, 5, 5]]
    with pytest.raises(UserError, match="takes no boxes"):
        predictor.encode(photo())


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device(None) == choose_device("auto")
    with pytest.raises(UserError, match=r"'gpu' cannot be used here \(there is no such kind\); expected cpu, cuda or"):
        choose_device("gpu")
    with pytest.raises(UserError, match="'tpu7'"):
        choose_device("tpu7")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="'cuda'"):
            choose_device("cuda")


def test_a_device_without_memory_is_refused():
    with pytest.raises(UserError, match="device 'meta' cannot be used here"):
        choose_device("meta")


def test_load_reads_a_weights_folder(tmp_path: Path):
    model = maskwright.DeepMAC(
        backbone="resnet18_fpn", mask_head="resnet4", image_size=64, mask_size=8, width=0.1, box_frame="pixel"
    )
    maskwright.save_pretrained(model, tmp_path / "weights")
    predictor = maskwright.load(tmp_path / "weights", device="cpu")
    assert predictor.needs_boxes
    prediction = predictor.predict(photo(), [[4, 2, 24, 22], [0, 0, 40, 30]])
    assert prediction.masks.shape == (2, 30, 40)
    assert not prediction.masks.requires_grad
    with pytest.raises(UserError, match="no-such-model"):
        maskwright.load("no-such-model")


def small_model(**values) -> maskwright.DeepMAC:
    torch.manual_seed(0)
    small = {"backbone": "hourglass10", "mask_head": "hourglass10", "mask_size": 8, "image_size": 64, "width": 0.1}
    return maskwright.DeepMAC(**{**small, **values}).eval()


def test_the_model_runs_folded_on_a_copy(tmp_path: Path):
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predictor = Predictor(model, "cpu")
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in predictor.model.modules())
    weight = predictor.model.get_parameter("network.backbone.network.stem.conv.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 2.0, 24.0, 22.0]])
    with torch.inference_mode():
        expected = model.masks_from_boxes(model.encode([image]), [boxes])[0].mask_probabilities
    torch.testing.assert_close(predictor.predict(image, boxes).mask_probabilities, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="rebuilt for inference"):
        maskwright.save_pretrained(predictor.model, tmp_path / "weights")


def test_bfloat16_is_the_networks_alone():
    """The layers compute in it; boxes, scores and masks come in float32, near those of float32."""
    model = small_model()
    found: list[torch.dtype] = []
    predictor = Predictor(model, "cpu", "bfloat16")
    predictor.model.get_submodule("network.mask_head.project_out").register_forward_hook(
        lambda layer, arguments, output: found.append(output.dtype)
    )
    image = torch.rand(3, 64, 64)
    prediction = predictor.predict(image, [[4, 2, 24, 22], [0, 0, 60, 60]])
    assert found == [torch.bfloat16]
    assert prediction.mask_probabilities.dtype == prediction.boxes.dtype == torch.float32
    exact = Predictor(model, "cpu").predict(image, [[4, 2, 24, 22], [0, 0, 60, 60]])
    difference = (prediction.mask_probabilities - exact.mask_probabilities).abs()
    assert 0 < float(difference.max()) < 0.05
    with pytest.raises(UserError, match="precision must be one of auto, float32, bfloat16, but got 'half'"):
        maskwright.load(device="cpu", precision="half")


@pytest.mark.parametrize(
    ("capabilities", "allowed", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "AVX512", "bfloat16"),
        ({"avx512_bf16": True}, "AVX512", "bfloat16"),
        ({"avx512_bf16": True}, "AVX2", "float32"),
        ({"avx512_f": True, "avx512_bf16": False}, "AVX512", "float32"),
        ({"neon": True}, "DEFAULT", "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_computes_it_fast(
    monkeypatch: pytest.MonkeyPatch, capabilities, allowed, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: allowed)
    assert resolve_precision("auto", torch.device("cpu")) == expected
    assert Predictor(small_model(), "cpu", "auto").precision == expected
    assert resolve_precision("float32", torch.device("cpu")) == "float32"


def test_compile_is_for_the_plain_tensor_methods(monkeypatch: pytest.MonkeyPatch, ellipse_model):
    compiled: list[str] = []
    called: list[str] = []

    def fake_compile(method):
        compiled.append(method.__name__)
        return lambda *arguments: (called.append(method.__name__), method(*arguments))[1]

    monkeypatch.setattr(torch, "compile", fake_compile)
    categories = [{"id": 1, "name": "disc"}]
    predictor = Predictor(small_model(detector="centernet", categories=categories), "cpu", compile=True)
    assert {"maps", "maps_and_detection", "mask_logits"} <= set(compiled)
    image = torch.rand(3, 64, 64)
    predictor.predict(image, score_threshold=0.0)
    assert called[:2] == ["<lambda>", "maps_and_detection"]  # the first tries the compiler
    predictor.predict(image, [[4, 2, 24, 22]])
    assert called[-2:] == ["maps", "mask_logits"]
    for build, expected in ((small_deep_marc.build, "maps"), (small_max_deeplab.small_model, "masks")):
        called.clear()
        predictor = Predictor(build(), "cpu", compile=True)
        with predictor.inference():
            predictor.model([image])
        assert called[:2] == ["<lambda>", expected]
    with pytest.raises(UserError, match="EllipseModel has no network that could be compiled"):
        Predictor(ellipse_model, "cpu", compile=True)


def test_what_compiling_needs_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch):
    def compile_nothing(_function):
        def fail(*_arguments):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\n\nSet TORCH_LOGS for more")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pytest.raises(
        UserError, match=r"here \(InvalidCxxCompiler: no working C\+\+ compiler\).*leave out --compile$"
    ):
        Predictor(small_model(), "cpu", compile=True)


@pytest.mark.slow
def test_compiled_predictions_are_the_same():
    model = small_model()
    image = torch.rand(3, 64, 64)
    plain, compiled = Predictor(model, "cpu"), Predictor(model, "cpu", compile=True)
    for count in (2, 3, 0, 1):
        boxes = torch.tensor([[4.0, 2.0, 24.0, 22.0]]).repeat(count, 1)
        expected = plain.predict(image, boxes).mask_probabilities
        torch.testing.assert_close(compiled.predict(image, boxes).mask_probabilities, expected, rtol=0, atol=1e-4)


def test_predictions_hold_their_image(predictor: Predictor):
    image = photo()
    prediction = predictor.predict(image, [[4, 2, 24, 22]])
    prompted = predictor.masks_from_boxes(predictor.encode(image), [[4, 2, 24, 22]])
    for one in (prediction, prompted):
        assert one.image is not None
        assert (one.image == maskwright.read_image(image)).all()
        assert one.overlay().size == image.size


def test_several_images_are_predicted_one_by_one(predictor: Predictor):
    images, boxes = [photo(40, 30), photo(60, 50), photo(20, 20)], [[[4, 2, 24, 22]], [], [[0, 0, 9, 9], [1, 1, 5, 5]]]
    labels = [[5], [], [2, -1]]
    expected = [predictor.predict(*row) for row in zip(images, boxes, labels, strict=True)]
    for several in (images, tuple(images), iter(images), (image for image in images)):
        found = predictor.predict(several, boxes, labels)
        assert [one.image_size for one in found] == [(30, 40), (50, 60), (20, 20)]
        for one, other in zip(found, expected, strict=True):
            assert (one.boxes == other.boxes).all()
            assert (one.labels == other.labels).all()
            assert (one.masks == other.masks).all()
    assert predictor.predict([], []) == []


@pytest.mark.parametrize("as_given", [list, iter])
def test_each_of_several_images_needs_its_boxes(predictor: Predictor, as_given):
    with pytest.raises(UserError, match="one entry per image"):
        predictor.predict(as_given([photo(), photo()]), as_given([[[1, 1, 9, 9]]]))
    with pytest.raises(UserError, match="image 1: box 0: "):
        predictor.predict(as_given([photo(), photo()]), as_given([[[1, 1, 9, 9]], [[5, 5, 1, 1]]]))


def test_a_panoptic_model_gives_maps():
    predictor = Predictor(small_max_deeplab.small_model(), "cpu")
    prediction = predictor.predict(photo(), score_threshold=0.0)
    assert isinstance(prediction, maskwright.PanopticPrediction)
    assert prediction.overlay().size == (40, 30)
