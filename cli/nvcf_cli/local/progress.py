"""Whether a process that starts makes progress: it uses CPU time, or writes to its log."""

import os
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 30.0
LONGEST_START_SECONDS = 600.0
# Less is a process that waits and looks at its clock now and then.
_CPU_SHARE = 0.005


@dataclass
class Progress:
    """Decides from what was seen when a start has come to a stop. Times are monotonic seconds."""

    began: float
    _seen_at: float = float("-inf")
    _cpu: float = 0.0
    _log: int = -1

    def stopped(self, now: float, cpu: float, log: int) -> bool:
        """Return whether to give up. `cpu` is the CPU time used so far, `log` the size of the log."""
        if self._seen_at == float("-inf"):
            self._seen_at = self.began
        waited = now - self._seen_at
        if log != self._log or cpu - self._cpu > max(0.05, waited * _CPU_SHARE):
            self._seen_at, self._cpu, self._log = now, cpu, log
        return now - self._seen_at >= PATIENCE_SECONDS or now - self.began >= LONGEST_START_SECONDS


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used; 0 where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def log_size(path: Path) -> int:
    """Return the size of a log file; 0 without one."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
