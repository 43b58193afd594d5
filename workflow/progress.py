"""Run Snakemake and print one line per step: the count, the step, and the time it took.

python -m workflow.progress [options of snakemake]

The output of a step goes to its own log. If the step fails, the error in its log is printed.
"""

import contextlib
import io
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from snakemake import cli
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

# Messages that Snakemake adds to every failure.
_ADDED = ("At least one job did not complete", "Exiting because a job execution failed")


class Step(NamedTuple):
    """A running job: its name, its log, and the time at which it began."""

    name: str
    log: Path | None
    began: float


class Lines:
    """Prints lines to a stream. On a terminal, one more line below them shows what is running.

    ``now`` returns seconds. A step is identified by Snakemake's number of the job.
    """

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.now = stream, now
        self.running: dict[int, Step] = {}
        self.failed: list[str] = []
        self._lock, self._over = threading.RLock(), threading.Event()
        if stream.isatty():
            threading.Thread(target=self._tick, daemon=True).start()

    def begin(self, job: int, name: str, log: Path | None) -> None:
        with self._lock:
            self.running[job] = Step(name, log, self.now())
            self.say()

    def end(self, job: int) -> str:
        """Remove a running step. Returns its name and the time it took."""
        with self._lock:
            step = self.running.pop(job)
            return f"{step.name}, {duration(self.now() - step.began)}"

    def fail(self, job: int, reason: str) -> None:
        """Print the failed step, its error, and its log. ``reason`` is Snakemake's message."""
        with self._lock:
            step = self.running[job]
            self.failed.append(step.name)
            self.say(f"[failed] {self.end(job)}")
            self.say(f"error: {quote(step.log, reason)}")
            if step.log:
                self.say(f"log: {step.log}")

    def say(self, line: str = "") -> None:
        """Print ``line`` if it is not empty, then again the line that shows what is running."""
        with self._lock:
            below = self._below()
            erase = "\r\x1b[K" if self.stream.isatty() else ""
            self.stream.write(erase + (f"{line}\n" if line else "") + below)
            self.stream.flush()

    def close(self) -> None:
        with self._lock:
            self._over.set()
            self.running.clear()
            self.say()

    def _below(self) -> str:
        if not self.running or not self.stream.isatty():
            return ""
        steps = self.running.values()
        shown = ", ".join(f"{step.name} ({duration(self.now() - step.began)})" for step in steps)
        return f"running: {shown}"[: shutil.get_terminal_size().columns - 1]

    def _tick(self) -> None:
        while not self._over.wait(1):
            self.say()


def duration(seconds: float) -> str:
    """For example 41 s, 3 min 20 s, 2 h 5 min."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds} s"
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def quote(log: Path | None, reason: str) -> str:
    """The last line of a log that begins with "error: ", without this prefix.

    If there is none, as when the step was killed: the last line of the log, with the ``reason``.
    """
    text = log.read_text("utf-8", "replace") if log and log.exists() else ""
    # A progress bar separates its states by carriage returns, which splitlines splits too.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    return f"{lines[-1]} ({reason})" if lines else reason


class LogHandler(LogHandlerBase):
    """A logger plugin of Snakemake. It passes Snakemake's events to `Lines`."""

    writes_to_stream = has_filter = has_formatter = True
    writes_to_file = needs_rulegraph = False

    def __post_init__(self) -> None:
        self.lines = Lines(sys.stderr)
        self.ended, self.errors = "", []

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO:
            name = _name(record.rule_name, record.wildcards)
            if self.common_settings.dryrun:
                self.lines.say(name)
            else:
                self.lines.begin(record.jobid, name, Path(record.log[0]) if record.log else None)
        elif event == LogEvent.JOB_FINISHED:
            self.ended = self.lines.end(record.job_id)
        elif event == LogEvent.PROGRESS:
            width = len(str(record.total))
            self.lines.say(f"[{record.done:{width}}/{record.total}] {self.ended}")
        elif event == LogEvent.JOB_ERROR:
            # The event before this one has the reason: "Command '...' died with ...".
            reason = self.errors.pop().splitlines()[-1] if self.errors else "failed"
            self.lines.fail(record.jobid, reason.rpartition("' ")[2].strip(" ."))
        elif record.levelno >= logging.ERROR:
            self.errors.append(record.getMessage())
        elif record.levelno >= logging.WARNING:
            self.lines.say(record.getMessage().strip())

    def close(self) -> None:
        self.lines.close()
        for error in self.errors:
            if not any(text in error for text in _ADDED):
                self.lines.say(f"error: {error.strip()}")
        if self.lines.failed:
            self.lines.say(
                f"error: {len(self.lines.failed)} failed: {'; '.join(self.lines.failed)}"
            )
        self.errors.clear()
        self.lines.failed.clear()
        super().close()


def _name(rule: str, wildcards: dict[str, str]) -> str:
    about = wildcards.get("chapter") or wildcards.get("cell")
    step = rule.replace("_", " ")
    return f"{about}: {step}" if about else step


def main(options: Sequence[str]) -> None:
    """Run Snakemake with these options. Exits with 0 on success, with 1 on failure."""
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_lines", sys.modules[__name__])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # parsing prints the name of the profile
            parser, arguments = cli.parse_args(["--logger=lines", *options])
    except SystemExit:
        print(said.getvalue(), end="", file=sys.stderr)
        raise
    try:
        done = cli.args_to_api(arguments, parser)
    except Exception as problem:
        cli.print_exception(problem)
        done = False
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
