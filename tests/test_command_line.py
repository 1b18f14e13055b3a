import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.command_line import ArgumentParser, number, run
from experiments.bench_selection import ERRORS, SCRIPTS

ROOT = Path(__file__).resolve().parents[1]
SLOW_TO_LOAD = ["torch._dynamo", "timm", "torchvision", "sklearn", "scipy", "matplotlib", "datasets"]
MODULES_AFTER = f"""
import json, runpy, shlex, sys
loaded = {{}}
for command in sys.argv[1:]:
    sys.argv = shlex.split(command)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ending:
        assert bool(ending.code) == ("--help" not in command), command
    loaded[command] = [module for module in {SLOW_TO_LOAD} if module in sys.modules]
print("\\n" + json.dumps(loaded))
"""


@pytest.mark.parametrize("commands", [[f"{script} --help" for script in SCRIPTS], ERRORS])
def test_neither_help_nor_an_error_before_the_work_loads_a_library_that_is_slow_to_load(commands, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MODULES_AFTER, *(f"{ROOT}/{command}" for command in commands)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == {f"{ROOT}/{command}": [] for command in commands}


@pytest.mark.parametrize("script", SCRIPTS)
def test_threads_sleep_while_they_wait_because_common_is_loaded_before_torch(script):
    """OpenMP reads its variables when torch is loaded, and never again."""
    imports = re.findall(r"^(?:import|from) (\w+)", (ROOT / script).read_text(), re.MULTILINE)
    assert not {"torch", "torchvision", "timm"} & set(imports[: imports.index("common")])


def test_what_the_system_refuses_is_one_line_and_an_exit_code(tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        run(lambda: (tmp_path / "other" / "file").read_text())
    assert ending.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "other/file" in line


def test_a_reader_that_has_seen_enough_is_no_error():
    code = "from common.command_line import run; run(lambda: [print('line', flush=True) for _ in range(100_000)])"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -1; exit ${{PIPESTATUS[0]}}',
        shell=True, executable="/bin/bash", cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("line\n", "", 141)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


@pytest.mark.parametrize("typed", ["--batch-size", "--batch_size"])
@pytest.mark.parametrize("added", ["--batch-size", "--batch_size"])
def test_options_are_taken_with_dashes_and_with_underscores(added, typed):
    parser = ArgumentParser("")
    parser.add_argument_group("a group").add_argument(added, type=number(int))
    assert parser.parse_args([typed, "-8"]).batch_size == -8
    assert parser.parse_args([f"{typed}=8"]).batch_size == 8


def test_only_the_names_of_options_are_spelled_anew_not_their_values():
    parser = ArgumentParser("")
    parser.add_argument("--finetuning_options")
    given = "--batch_size=8 --eval-interval 3"
    assert parser.parse_args([f"--finetuning-options={given}"]).finetuning_options == given
