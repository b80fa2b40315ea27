"""Log lines: one an event, with UTC time, level, node and text; or one JSON object an event for machines."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAME = "musidecar"
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


class _Text(logging.Formatter):
    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        return f"{_time(record)} {record.levelname.lower():<7} {self.origin}: {_one_line(text)}"


class _Json(logging.Formatter):
    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "origin": self.origin,
            "text": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= {key: value for key, value in vars(record).items() if key not in _PLAIN}
        return json.dumps(line, default=str)


def setup(
    origin: str, *, as_json: bool = False, level: int = logging.INFO, file: Path | None = None
) -> logging.Logger:
    """The program's logger, writing to standard error and, if given, to `file` too (appended).

    origin: who speaks, e.g. "node 2". When standard error is that file already, a line is written once.
    Extra fields (`extra={...}`) appear in JSON only. OSError when the file cannot be opened.
    """
    formatter: logging.Formatter = _Json(origin) if as_json else _Text(origin)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None and not _is_stderr(file):
        handlers.append(logging.FileHandler(file))
    logger = logging.getLogger(NAME)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger


def _is_stderr(path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(2))
    except OSError:
        return False
