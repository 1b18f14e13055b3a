"""The main job on real images, offline: are images selected by ActiveFT worth more than as many random ones?

    make demo

runs a column of `make table`: 2% of scikit-learn's handwritten digits are selected by ActiveFT and at random with five
seeds; on each subset follow two finetunings, by the published recipe and by the one for few labels, and a linear
readout of the frozen features. The demo prints each documented command that it runs, and ends with the accuracies and a
picture of both subsets of seed 0, in experiments/output/demo. Finished commands are not run again.
"""

import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, run
from experiments import paper_table
from experiments.protocols import OUTPUT

FOLDER = OUTPUT / "demo"
SLICE = "--dataset digits --methods random activeft --percents 2 --readouts finetuned few-labels linear"


def main(argv: list[str] | None = None) -> None:
    ArgumentParser("Compare 2% of the digits, selected by ActiveFT and at random.").parse_args(argv)
    from experiments.plots import plot_subsets  # matplotlib, a second to load

    started = time.monotonic()
    paper_table.main([*SLICE.split(), "--output_dir", str(FOLDER)])
    subsets = {
        name: FOLDER / "2_percent" / method / "seed_0" / "subset" / "subset.json"
        for name, method in (("random", "random"), ("ActiveFT", "activeft"))
    }
    picture = plot_subsets(FOLDER / "features" / "digits_train.npy", subsets, FOLDER / "chosen_images.png")
    print(f"wrote a picture of both subsets of seed 0 to {picture}; {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    run(main)
