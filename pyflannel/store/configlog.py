"""What is wrong with a network config, as log lines."""

from __future__ import annotations

from collections.abc import Sequence

from pyflannel.core.fields import Problem
from pyflannel.logs import get_logger

log = get_logger(__name__)


def log_problems(problems: Sequence[Problem], where: str) -> None:
    """One log line for each problem of a config, errors as errors."""
    for problem in problems:
        write = log.error if problem.severity == "error" else log.warning
        write(
            f"network config: {problem.message}",
            where=where,
            key=problem.key,
            remedy=problem.remedy or None,
        )
