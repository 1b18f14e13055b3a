"""The benchmarks run, at sizes that take a moment, and print what they are for; no test looks at the times."""

import re

from experiments import bench_extraction, bench_selection, bench_trainer


def test_the_trainers_benchmark_prints_both_times_and_their_ratio(monkeypatch, capsys):
    monkeypatch.setattr(bench_trainer, "CASES", {"30 images": (30, (32, 32), bench_trainer.SMALL_VIT_32, 1, 1)})
    bench_trainer.main(["--num_workers", "0"])
    assert re.search(r"^30 images( +\d[\d.]*){5}%$", capsys.readouterr().out, re.MULTILINE)


def test_the_extractions_benchmark_prints_the_images_per_second_of_each_kind(monkeypatch, capsys):
    monkeypatch.setattr(bench_extraction, "KINDS", {"tiny PNG": (8, 8, "png")})
    options = "--images 4 --repeats 1 --arch vit_tiny_patch16_224 --num_workers 0 --device cpu"
    bench_extraction.main(options.split())
    assert re.search(r"^tiny PNG( +[\d.]+ img/s){2}( +[\d.]+){2} +[\d.]+ img/s$", capsys.readouterr().out, re.MULTILINE)


def test_the_selections_benchmark_prints_the_ratio_of_the_reference_to_the_fast_form(capsys):
    options = "--n 200 --k 5 --iterations 3 --timed_iterations 1 --repeats 1 --methods select reference"
    bench_selection.main(options.split())
    figures = r"( +-?[\d.]+ s +-?[\d.]+ s +(-?\d+|nan) MB){2} +[\d.na]+ s +[\d.]+ s( +-?[\d.]+x){3}"
    assert re.search(rf"^ +200 +5{figures}$", capsys.readouterr().out, re.MULTILINE)
