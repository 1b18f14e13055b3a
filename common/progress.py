"""Progress of long work: bars on a terminal; in a log file, a line now and then."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60
LINE = "{desc}: {percentage:.0f}%, {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """Return tqdm's bar, given tqdm's arguments; if stderr is not a terminal, it prints a line after each minute."""
    return (tqdm if sys.stderr.isatty() else ProgressLines)(*args, **kwargs)


class ProgressLines(tqdm):
    """Progress as log lines: each is complete, none is redrawn, and work of less than a minute prints none."""

    def __init__(self, *args: Any, **kwargs: Any):
        every = dict.fromkeys(("mininterval", "maxinterval", "delay"), SECONDS_BETWEEN_LINES)
        super().__init__(*args, **kwargs, **every, bar_format=LINE)

    @staticmethod
    def status_printer(file: Any) -> Any:
        return lambda line: line and print(line, file=file, flush=True)

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        if not self.disable and self._time() - self.last_print_t >= self.mininterval:
            super().refresh(*args, **kwargs)
            self.last_print_t = self._time()

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to clear: a line stays."""

    def moveto(self, n: int) -> None:
        """Nowhere to move: a line stays."""
