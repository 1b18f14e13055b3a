"""The file between the stages: what is read, and what is refused in one line."""

import json

import numpy as np
import pytest
import safetensors.numpy

from common.errors import InputError
from common.feature_file import description_file, in_words, read_description, read_features

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def save_safetensors(path) -> None:
    safetensors.numpy.save_file({"features": TABLE}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("<!DOCTYPE html><html></html>"), "not a plain .npy array: it is an HTML page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 1"), "it is a Git LFS pointer"),
        (lambda path: path.write_text("0.5,0.25,1\n0.5,0.5,0\n"), "it is a CSV or text file"),
        (save_safetensors, "it is a safetensors file"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"\x80\x04]."), "it is a Python pickle"),
        (lambda path: np.save(path.open("wb"), np.float32(3)), "has a single number, not"),
        (lambda path: np.save(path.open("wb"), TABLE[0]), r"has shape \(3,\), not \(n, d \+ 1\)"),
        (lambda path: np.savez(path.open("wb"), a=TABLE, b=TABLE), r"holds several arrays \(a, b\)"),
        (lambda path: np.save(path.open("wb"), np.array([{}])), "not a plain .npy array: .*Python objects"),
        (lambda path: np.save(path.open("wb"), TABLE.astype(int)), "holds int64, not floating point"),
        (lambda path: np.save(path.open("wb"), TABLE + 0.5), "the last column is the label, and that of row 0 is 2.5"),
    ],
)
def test_what_is_no_feature_file_is_called_what_it_is(write, message, tmp_path):
    write(tmp_path / "f.npy")
    with pytest.raises(InputError, match=message) as caught:
        read_features(tmp_path / "f.npy")
    assert "\n" not in str(caught.value)


def test_features_of_another_tool_need_no_label_column(tmp_path):
    np.save(tmp_path / "f.npy", TABLE + 0.5)
    features, labels = read_features(tmp_path / "f.npy", labels=False)
    assert np.array_equal(features, TABLE + 0.5) and labels.tolist() == [-1] * 4


def test_what_the_features_are_is_read_from_beside_them(tmp_path):
    assert read_description(tmp_path / "f.npy") is None
    described = {"model": "m", "weights": "w", "feature": "CLS", "d": 2, "input_size": 224, "mean": [0.5] * 3,
                 "std": [0.25] * 3, "interpolation": "bicubic"}  # fmt: skip
    description_file(tmp_path / "f.npy").write_text(json.dumps(described))
    assert read_description(tmp_path / "f.npy") == described
    assert in_words(described) == (
        "m, weights w; feature: CLS, d 2; images 224x224 (bicubic), mean 0.5 0.5 0.5, std 0.25 0.25 0.25"
    )
