"""What a selection costs: the fast form of ActiveFT, its plain autograd reference, and scikit-learn's k-means.

    python experiments/bench_selection.py --feature_path data_selection/features/CIFAR10_train.npy
    python experiments/bench_selection.py --methods select --n 200000 --k 20000 --iterations 40 --repeats 1
    python experiments/bench_selection.py --startup

Every method runs in its own process, in turn. Figures are medians: seconds, CPU seconds of all threads (less noisy on a
machine that others use), and what a method adds to the memory of the features it is given; select holds a copy of them
with unit rows. The ratios are those of the reference to select, of seconds and of CPU seconds. Imports and the reading
of the features are not in the figures of a method; `process` is all of the first method's process, with them.

Without a feature file the pool is generated: Gaussian clusters with a decaying spectrum, d = 384. A run of the
reference is timed over a few iterations and scaled to all of them.

--startup: how long each script takes to its help, and a selection of 28 of 1,437 x 96 features in all, as multiples of
`import torch`.
"""

import argparse
import json
import platform
import resource
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
CPU_INFO = Path("/proc/cpuinfo")


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
    """n rows (n, d) of the file, of all classes, in order."""
    if feature_path is None:
        return generated_features(n)
    features, _ = read_features(feature_path)
    if n > len(features):
        raise InputError(f"{feature_path} has {len(features)} rows, fewer than --n {n}")
    rows = np.linspace(0, len(features) - 1, n).astype(int)
    return np.array(features[rows], dtype=np.float32)


def peak_memory() -> float:
    """MB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def measure(method: str, features: np.ndarray, k: int, iterations: int) -> list[float]:
    """Run one method in this process. Returns: seconds, CPU seconds, and megabytes, the peak it adds."""
    from data_selection.activeft import reference, select
    from data_selection.activeft.pool import Candidates, read_pool
    from data_selection.activeft.selection import Settings

    if method == "kmeans":  # it sees the same unit rows
        from sklearn.cluster import KMeans

        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    candidates, settings = Candidates(len(features)), Settings(max_iter=iterations)
    run_method = {
        "select": lambda: select(features, k, max_iter=iterations, device="cpu"),
        "reference": lambda: reference.optimise(read_pool(features, candidates), k, settings),
        "kmeans": lambda: KMeans(k, init="random", n_init=1, max_iter=iterations, tol=0).fit(features),
    }[method]
    before, start, cpu_start = peak_memory(), time.perf_counter(), time.process_time()
    run_method()
    return [time.perf_counter() - start, time.process_time() - cpu_start, peak_memory() - before]


def measure_in_child(args: argparse.Namespace, method: str, n: int, k: int, iterations: int) -> np.ndarray:
    """Seconds, CPU seconds and MB of one method in a fresh process, and the seconds of the process."""
    options = f"--child {method} --n {n} --k {k} --threads {args.threads} --iterations {iterations}"
    command = [sys.executable, __file__, *options.split()]
    command += ["--feature_path", args.feature_path] if args.feature_path else []
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{method} failed at n = {n}, k = {k}: {done.stderr.strip().splitlines()[-1]}")
    return np.array([*json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start])


def cost(args: argparse.Namespace, method: str, n: int, k: int) -> np.ndarray:
    """The same for a whole run; of the reference from two short ones, which differ in --timed_iterations."""
    if method != "reference":
        return measure_in_child(args, method, n, k, args.iterations if method == "select" else args.kmeans_iterations)
    one = measure_in_child(args, method, n, k, 1)
    more = measure_in_child(args, method, n, k, 1 + args.timed_iterations)
    scaled = one + (args.iterations - 1) * (more - one) / args.timed_iterations
    scaled[2] = more[2]
    return scaled


def seconds_of(*command: str) -> float:
    """Of a Python process that must end well."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - start


def measure_startup(repeats: int) -> None:
    """Print it, as medians of the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/pool.npy", np.pad(generated_features(1437, 96), [(0, 0), (0, 1)]))
        selection = f"--feature_path {folder}/pool.npy --number 28 --device cpu --output_dir {folder}".split()
        commands = {f"{script} --help": (script, "--help") for script in SCRIPTS}
        commands["28 of 1,437 images"] = (SELECTION_SCRIPT, *selection)
        times = [
            (seconds_of("-c", "import torch"), [seconds_of(*command) for command in commands.values()])
            for _ in range(repeats)
        ]
    print(f"import torch: {statistics.median(torch for torch, _ in times):.2f} s; of that")
    for row, name in enumerate(commands):
        print(f"{name:60} {statistics.median(each[row] / torch for torch, each in times):.2f}x")


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Measure time and peak memory of the selection beside its reference and k-means.")
    parser.add_argument("--feature_path", help="feature file; not given: generated clusters")
    parser.add_argument("--n", nargs="+", type=number(int, 1), default=[12500, 25000, 50000], help="pool sizes")
    parser.add_argument("--k", nargs="+", type=number(int, 1), default=[250, 500, 1000], help="budgets")
    parser.add_argument("--iterations", type=number(int, 1), default=300, help="of the selection")
    parser.add_argument("--kmeans_iterations", type=number(int, 1), default=100, help="of k-means")
    parser.add_argument("--timed_iterations", type=number(int, 1), default=10, help="of the reference")
    parser.add_argument("--repeats", type=number(int, 1), default=3)
    parser.add_argument("--threads", type=number(int, 1), default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--startup", action="store_true", help="measure how long the scripts take to start, instead")
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
    print(f"{'n':>8} {'k':>6}{titles} {'process':>9}" + f" {'ratio':>7} {'of CPU':>7}" * compared)
    # n varies at the largest k, k at the largest n
    for n, k in sorted({(n, max(args.k)) for n in args.n} | {(max(args.n), k) for k in args.k}):
        # (repeats, methods, figures)
        costs = np.array([[cost(args, method, n, k) for method in methods] for _ in range(args.repeats)])
        shown = "".join(f"{s:8.1f} s{cpu:7.1f} s{mb:6.0f} MB" for s, cpu, mb, _ in np.median(costs, axis=0))
        line = f"{n:8} {k:6}{shown} {np.median(costs[:, 0, 3]):7.1f} s"
        if compared:
            seconds, cpu = np.median(costs[:, methods.index("reference"), :2] / costs[:, 0, :2], axis=0)
            line += f" {seconds:6.1f}x {cpu:6.1f}x"
        print(line, flush=True)


if __name__ == "__main__":
    run(main)
