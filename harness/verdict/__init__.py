"""Turn evidence into verdicts. Pure: text in, values out; no I/O, no printing."""

from __future__ import annotations

from harness.verdict.claims import Claim, ClaimKind, Outcome, Run, ScenarioResult, exit_code
from harness.verdict.ktap.parse import KtapOutcome, Report, Test
from harness.verdict.ktap.parse import parse as parse_ktap
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.complaints import Complaint
from harness.verdict.log.lines import message as log_message
from harness.verdict.log.records import LogPart, LogRecord, parse_log_part
from harness.verdict.log.scanner import Scanner, scan
from harness.verdict.log.taint import HARMLESS, Taint
from harness.verdict.log.taint import added as added_taint
from harness.verdict.log.taint import alarming as alarming_taint
from harness.verdict.log.taint import describe as describe_taint
from harness.verdict.log.taint import parse as parse_taint

__all__ = [
    "HARMLESS",
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
    "added_taint",
    "alarming_taint",
    "describe_taint",
    "exit_code",
    "log_message",
    "parse_ktap",
    "parse_log_part",
    "parse_taint",
    "scan",
]
