"""Measure what a selection costs: ActiveFT's fast form, its plain autograd reference, and scikit-learn's k-means.

    python experiments/bench_selection.py --feature_path data_selection/features/CIFAR10_train.npy
    python experiments/bench_selection.py --methods select --n 200000 --k 20000 --iterations 40 --repeats 1
    python experiments/bench_selection.py --startup

The methods run one after the other, each in its own process. Figures are medians: seconds, CPU seconds of all threads
(less noisy on a machine that others use), and peak memory beyond the libraries and the features given to the method
(for select, this includes its copy of them with unit rows). A method's figures leave out imports and reading the
features; `process` is the whole process of the first method, with both. `iteration` is the median of select's later
iterations. The ratios: reference to select in seconds and in CPU seconds, and to select's whole process in seconds.

Without a feature file the pool is generated: Gaussian clusters with a decaying spectrum, d = 384. The reference is
timed over a few iterations and scaled to all of them.

--startup: how long each script takes to show its help or an error found before the work, and how long a whole
selection of 28 of 1,437 x 96 features takes, as multiples of `import torch`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run
from common.errors import InputError
from common.feature_file import read_features
from experiments import ROOT

METHODS = ("select", "reference", "kmeans")
PACKAGES = ("data_selection", "deit", "segmenter", "experiments")
SELECTION_SCRIPT = "data_selection/sample_tools/ActiveFT_CIFAR.py"
SCRIPTS = [
    str(file.relative_to(ROOT))
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
    if 'if __name__ == "__main__":' in file.read_text().splitlines()
]
# Errors that are found before the work: missing files, options that do not go together.
ERRORS = [
    "data_selection/extract_feature.py --dataset Folder --data_path missing",
    "data_selection/sample_tools/ActiveFT_CIFAR.py --feature_path missing.npy",
    "data_selection/sample_tools/ActiveFT_ImageNet.py --feature_path missing.npy --percent 0",
    "data_selection/sample_tools/baseline.py --method kmeans --feature_path missing.npy",
    "data_selection/sample_tools/report.py --feature_path missing.npy --subset_ids missing.json",
    "deit/main.py --data-set FOLDER --data-path missing",
    "deit/main.py --data-set CIFAR10SUBSET --subset_ids missing.json",
    "deit/main.py --data-set CSV --data-path . --labels missing.csv",
    "deit/predict.py --checkpoint missing.pth --data_path .",
    "segmenter/main.py --data-path missing",
    "segmenter/predict.py --checkpoint missing.pth --data_path . --output masks",
    "experiments/paper_table.py --dataset CIFAR10 --arch vit_small_patch14_dinov2.lvd142m",
]
CPU_INFO, STATUS = Path("/proc/cpuinfo"), Path("/proc/self/status")
WARM_UP = 200, 10  # samples and budget of an unmeasured first run: libraries load some parts only when used


def generated_features(n: int, d: int = 384, clusters: int = 500, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    spectrum = (1 + np.arange(d, dtype=np.float32)) ** -0.5
    centres = random.standard_normal((clusters, d), dtype=np.float32) * spectrum
    which = random.integers(clusters, size=n)
    features = random.standard_normal((n, d), dtype=np.float32)
    features *= 0.8 * spectrum
    features += centres[which]
    return features


def load(feature_path: str | None, n: int) -> np.ndarray:
    """Return n evenly spaced rows (n, d) of the file, so of all classes; generated rows if there is no file."""
    if feature_path is None:
        return generated_features(n)
    features, _ = read_features(feature_path)
    if n > len(features):
        raise InputError(f"{feature_path} has {len(features)} rows, fewer than --n {n}")
    rows = np.linspace(0, len(features) - 1, n).astype(int)
    return np.array(features[rows], dtype=np.float32)


def resident(what: str) -> float:
    """Return this process's memory in MB: VmRSS (now) or VmHWM (peak since `forget_peak`); NaN if not on Linux."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), float("nan"))


def forget_peak() -> None:
    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def measure(method: str, features: np.ndarray, k: int, iterations: int) -> list[float]:
    """Run one method in this process. Returns: seconds, CPU seconds, MB that it adds, seconds per iteration.

    The last is the median over select's iterations without the first three, which make the first lists; or NaN.
    """
    from data_selection.activeft import reference, select
    from data_selection.activeft.pool import Candidates, read_pool
    from data_selection.activeft.selection import Settings

    if method == "kmeans":  # it gets the same unit rows
        from sklearn.cluster import KMeans

        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    settings, reached = Settings(max_iter=iterations), []
    observe = lambda *_: reached.append(time.perf_counter())  # noqa: E731
    run_method = {
        "select": lambda rows, k: select(rows, k, max_iter=iterations, device="cpu", observe=observe),
        "reference": lambda rows, k: reference.optimise(read_pool(rows, Candidates(len(rows))), k, settings),
        "kmeans": lambda rows, k: KMeans(k, init="random", n_init=1, max_iter=iterations, tol=0).fit(rows),
    }[method]
    samples, budget = WARM_UP
    run_method(features[:samples], min(budget, k))
    reached.clear()
    forget_peak()
    before, start, cpu_start = resident("VmRSS"), time.perf_counter(), time.process_time()
    run_method(features, k)
    spent = [time.perf_counter() - start, time.process_time() - cpu_start, resident("VmHWM") - before]
    return [*spent, float(np.median(np.diff(reached)[3:])) if len(reached) > 4 else float("nan")]


def measure_in_child(args: argparse.Namespace, method: str, n: int, k: int, iterations: int) -> np.ndarray:
    """Run `measure` in a fresh process. Returns: its four figures, and the seconds of the whole process."""
    options = f"--child {method} --n {n} --k {k} --threads {args.threads} --iterations {iterations}"
    command = [sys.executable, __file__, *options.split()]
    command += ["--feature_path", args.feature_path] if args.feature_path else []
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{method} failed at n = {n}, k = {k}: {done.stderr.strip().splitlines()[-1]}")
    return np.array([*json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start])


def cost(args: argparse.Namespace, method: str, n: int, k: int) -> np.ndarray:
    """Return these figures for a full run; the reference's times are scaled from two runs --timed_iterations apart."""
    if method != "reference":
        return measure_in_child(args, method, n, k, args.iterations if method == "select" else args.kmeans_iterations)
    one = measure_in_child(args, method, n, k, 1)
    more = measure_in_child(args, method, n, k, 1 + args.timed_iterations)
    scaled = one + (args.iterations - 1) * (more - one) / args.timed_iterations
    scaled[2] = more[2]
    return scaled


def seconds_of(*command: str, status: int = 0) -> float:
    """Time a Python process that must end with this exit status; return the seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != status:
        raise InputError(f"{' '.join(command)} ended with exit status {done.returncode}: {done.stderr[-300:]}")
    return time.perf_counter() - start


def measure_startup(repeats: int) -> None:
    """Print the start-up times, as medians of their ratios to `import torch`."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/pool.npy", np.pad(generated_features(1437, 96), [(0, 0), (0, 1)]))
        selection = f"--feature_path {folder}/pool.npy --number 28 --device cpu --output_dir {folder}".split()
        commands = {f"{script} --help": ((script, "--help"), 0) for script in SCRIPTS}
        commands |= {command: (command.split(), 2) for command in ERRORS}
        commands["28 of 1,437 images"] = (SELECTION_SCRIPT, *selection), 0
        times = [
            (seconds_of("-c", "import torch"), [seconds_of(*words, status=end) for words, end in commands.values()])
            for _ in range(repeats)
        ]
    print(f"import torch: {statistics.median(torch for torch, _ in times):.2f} s; as multiples of it:")
    for row, name in enumerate(commands):
        print(f"{name:60} {statistics.median(each[row] / torch for torch, each in times):.2f}x")


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Measure time and peak memory of the selection beside its reference and k-means.")
    parser.add_argument("--feature_path", help="feature file; if not given, generated clusters")
    parser.add_argument("--n", nargs="+", type=number(int, 1), default=[12500, 25000, 50000], help="pool sizes")
    parser.add_argument("--k", nargs="+", type=number(int, 1), default=[250, 500, 1000], help="budgets")
    parser.add_argument("--iterations", type=number(int, 1), default=300, help="iterations of select and reference")
    parser.add_argument("--kmeans_iterations", type=number(int, 1), default=100, help="iterations of k-means")
    parser.add_argument("--timed_iterations", type=number(int, 1), default=10, help="timed iterations of the reference")
    parser.add_argument("--repeats", type=number(int, 1), default=3)
    parser.add_argument("--threads", type=number(int, 1), default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--startup", action="store_true", help="measure how long the scripts take to start instead")
    parser.add_argument("--child", choices=METHODS, help="run one method alone and print it as JSON")
    args = parser.parse_args(argv)
    if args.child:
        import torch

        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args.child, load(args.feature_path, args.n[0]), args.k[0], args.iterations)))
        return
    print(f"{processor()}, {args.threads} threads, medians of {args.repeats}")
    if args.startup:
        measure_startup(args.repeats)
        return
    methods = [method for method in METHODS if method in args.methods]
    compared = {"select", "reference"} <= {*methods}
    titles = "".join(f"{title:>27}" for title in methods)
    print(
        f"{'n':>8} {'k':>6}{titles} {'iteration':>11} {'process':>9}"
        + f" {'ratio':>7} {'of CPU':>7} {'process':>8}" * compared
    )
    # n varies at the largest k, k at the largest n
    for n, k in sorted({(n, max(args.k)) for n in args.n} | {(max(args.n), k) for k in args.k}):
        # (repeats, methods, figures)
        costs = np.array([[cost(args, method, n, k) for method in methods] for _ in range(args.repeats)])
        shown = "".join(f"{s:8.1f} s{cpu:7.1f} s{mb:6.0f} MB" for s, cpu, mb, *_ in np.median(costs, axis=0))
        iteration, process = np.median(costs[:, 0, 3:], axis=0)
        line = f"{n:8} {k:6}{shown} {iteration:9.3f} s {process:7.1f} s"
        if compared:
            of_reference, of_select = costs[:, methods.index("reference"), [0, 1, 0]], costs[:, 0, [0, 1, 4]]
            seconds, cpu, process = np.median(of_reference / of_select, axis=0)
            line += f" {seconds:6.1f}x {cpu:6.1f}x {process:7.1f}x"
        print(line, flush=True)


if __name__ == "__main__":
    run(main)
