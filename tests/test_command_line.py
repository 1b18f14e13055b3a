import pytest

from common.command_line import run


def test_what_the_system_refuses_is_one_line_and_an_exit_code(tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        run(lambda: (tmp_path / "other" / "file").read_text())
    assert ending.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "other/file" in line


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
