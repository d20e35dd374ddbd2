"""The checks that `serve` runs before it starts, so that a mistake causes one line of text and not endless
retries.

They are the necessary checks of ``pads-cdc check``. They are repeated for a while if the database is starting
up, if a table is locked, or if a query was cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from cdc.checks import NECESSARY, Site, Verdict
from cdc.errors import Refusal, SourceError, gives_way

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 30.0
"""Seconds for which a check that fails for a temporary reason is repeated."""
_PAUSE = 0.5
"""Seconds between two attempts."""
_PASSING = {"shutdown", "recovery_conflict"}
"""Temporary reasons that the server reports. If it does not answer at all, checks are not repeated, because a
person has to look.
"""


def check(new_site: Callable[[], Site]) -> None:
    """Run the necessary checks on the slot's server and the query server. Blocks while they answer.

    ``new_site`` makes a new site for each attempt, since a site caches the servers' answers.

    Raises:
        PadsCdcError: a check failed. The text describes the fault and contains the command that fixes it.

    """
    patiently = Retrying(
        retry=retry_if_exception(_passes),
        stop=stop_after_delay(_PATIENCE),
        wait=wait_fixed(_PAUSE),
        reraise=True,
    )
    patiently(lambda: _refuse(new_site()))


def _passes(error: BaseException) -> bool:
    return gives_way(error) or (isinstance(error, SourceError) and error.reason in _PASSING)


def _refuse(site: Site) -> None:
    """Raise an error for the first fault."""
    for question in NECESSARY:
        for finding in question.ask(site):
            if finding.verdict is Verdict.FAIL:
                first, *more = finding.remedy.splitlines()
                rest = " (`pads-cdc check` shows all of it)" if more else ""
                raise Refusal(f"{finding.text}; {first}{rest}")
