"""Turns evidence into verdicts: text in, values out; no I/O, no printing.

Two enumerations are called ``Outcome`` in their own modules. :class:`harness.verdict.claims.Outcome`, of a scenario or
a claim, keeps its name here; :class:`harness.verdict.ktap.Outcome`, of a test in a guest's report, is ``KtapOutcome``.
"""

from __future__ import annotations

from harness.verdict.claims import Claim, ClaimKind, Outcome, Run, ScenarioResult, exit_code
from harness.verdict.complaint_kinds import ComplaintKind
from harness.verdict.kernel_log import (
    Checkpoint,
    Complaint,
    Scanner,
    UserFault,
    checkpoints,
    last_checkpoint,
    scan,
    user_faults,
)
from harness.verdict.ktap import Outcome as KtapOutcome
from harness.verdict.ktap import Report, Test
from harness.verdict.ktap import parse as parse_ktap
from harness.verdict.log_lines import message as log_message
from harness.verdict.log_records import LogPart, LogRecord, parse_log_part
from harness.verdict.taint import HARMLESS, Taint
from harness.verdict.taint import added as added_taint
from harness.verdict.taint import alarming as alarming_taint
from harness.verdict.taint import describe as describe_taint
from harness.verdict.taint import letters as taint_letters
from harness.verdict.taint import parse as parse_taint

__all__ = [
    "HARMLESS",
    "Checkpoint",
    "Claim",
    "ClaimKind",
    "Complaint",
    "ComplaintKind",
    "KtapOutcome",
    "LogPart",
    "LogRecord",
    "Outcome",
    "Report",
    "Run",
    "Scanner",
    "ScenarioResult",
    "Taint",
    "Test",
    "UserFault",
    "added_taint",
    "alarming_taint",
    "checkpoints",
    "describe_taint",
    "exit_code",
    "last_checkpoint",
    "log_message",
    "parse_ktap",
    "parse_log_part",
    "parse_taint",
    "scan",
    "taint_letters",
    "user_faults",
]
