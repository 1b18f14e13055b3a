"""The sliding window and the metrics of segmentation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.processes import Processes
from common.scenes import IGNORED
from segmenter.evaluation import SlidingWindow, count_pairs, evaluate, metrics, window_starts


@pytest.mark.parametrize(
    ("length", "expected"),
    [(512, [0]), (300, [0]), (513, [0, 1]), (683, [0, 171]), (992, [0, 480]), (1000, [0, 480, 488])],
)
def test_windows_are_480_apart_and_the_last_is_moved_inside(length, expected):
    assert window_starts(length, 512, 480) == expected


def test_windows_cover_every_pixel_and_lie_inside():
    for length in range(1, 60):
        covered = {pixel for start in window_starts(length, 16, 7) for pixel in range(start, start + 16)}
        assert covered >= set(range(length))
        assert max(window_starts(length, 16, 7)) <= max(0, length - 16)


@pytest.mark.parametrize("size", [(20, 33), (16, 16), (10, 40)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_sliding_window_equals_one_pass_over_the_image_where_the_model_looks_at_one_pixel(size, batch_size):
    torch.manual_seed(0)
    model, image = nn.Conv2d(3, 5, 1), torch.randn(3, *size)
    logits = SlidingWindow(16, 7, batch_size).logits(model, image)
    torch.testing.assert_close(logits, model(image[None])[0])


def test_logits_are_averaged_where_windows_overlap():
    class Nth(nn.Module):
        """Says the number of the window everywhere."""

        def forward(self, windows):
            return torch.arange(len(windows)).float().reshape(-1, 1, 1, 1).expand(-1, 1, *windows.shape[-2:])

    logits = SlidingWindow(4, 3, 8).logits(Nth(), torch.zeros(3, 4, 10))  # at 0, 3, 6
    assert logits[0, 0].tolist() == [0, 0, 0, 0.5, 1, 1, 1.5, 2, 2, 2]


def test_prediction_is_the_largest_logit_after_interpolation_to_the_original_size():
    image = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(image[None], (9, 13), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(SlidingWindow(8, 8, 1).predict(nn.Identity(), image, (9, 13)), expected)


def test_metrics_of_a_case_counted_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 1, IGNORED]])
    predicted = torch.tensor([[0, 1, 1], [1, 2, 0]])
    confusion = count_pairs(truth, predicted, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    found = metrics(confusion)
    # class 0: 1 of 2; class 1: 2 of 4; class 2: predicted once, never true; class 3: nowhere
    assert found["iou"] == [50.0, 50.0, 0.0, None]
    assert found["miou"] == pytest.approx(100 / 3)
    assert found["pixel_acc"] == pytest.approx(100 * 3 / 5)
    assert found["mean_acc"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_metrics_of_scenes_without_a_labelled_pixel_are_none():
    confusion = count_pairs(torch.full((2, 2), IGNORED), torch.zeros(2, 2, dtype=torch.int64), 2)
    assert metrics(confusion) == {"miou": None, "pixel_acc": None, "mean_acc": None, "iou": [None, None]}


def test_evaluation_sums_one_confusion_matrix_over_images_of_different_sizes():
    """The mean over images of each image's IoU is another number."""
    model = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.eye_(model.weight.data[:, :, 0, 0])  # the class is the brightest channel
    scenes, confusion = [], torch.zeros(3, 3, dtype=torch.int64)
    for seed, size in enumerate([(12, 20), (17, 16), (30, 9)]):
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(3, *size, generator=generator)
        truth = torch.randint(-1, 3, size, generator=generator)
        scenes.append((image[None], truth[None]))
        confusion += count_pairs(truth, image.argmax(0), 3)
    assert evaluate(model, scenes, 3, Processes(), SlidingWindow(8, 6, 4)) == metrics(confusion)
