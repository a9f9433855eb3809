"""Records as documents, and as large as their bounds let them be."""

from typing import Any, get_args

from lmtraining_api import ExitRecord, IntervalReport, State, TimeAccounts, TrainerReport
from lmtraining_api.fields import (
    FRAME_LENGTH_MAX,
    FRAMES_MAX,
    MESSAGE_LENGTH_MAX,
    SHORT_FRAME_LENGTH_MAX,
)
from lmtraining_api.records import (
    HUNG_RANKS_MAX,
    NOTICE_LENGTH_MAX,
    RANKS_REPORTED_MAX,
    ROBUSTNESS_MAX,
    SLOWEST_RANKS_MAX,
)
from lmtraining_api.report_parts import LABEL_LENGTH_MAX, LABELS_SHOWN_MAX
from lmtraining_api.wishes import REFUSAL_LENGTH_MAX, REQUEST_LENGTH_MAX
from tests.contract_status import TIME

EXIT: dict[str, Any] = {
    "jobUid": "u",
    "attempt": 1,
    "round": 0,
    "replica": 0,
    "exitCode": 89,
    "failureClass": "Crash",
    "reason": "RankRaised",
    "time": TIME,
}
REPORT: dict[str, Any] = {
    "jobUid": "u",
    "attempt": 1,
    "round": 0,
    "state": "Training",
    "reportTime": TIME,
    "precision": "bf16",
    "lastExit": EXIT,
}
FAULT: dict[str, Any] = {
    "round": 1,
    "failureClass": "Hang",
    "reason": "RankSilent",
    "step": 5,
    "time": TIME,
}

# The largest a record can be: every text at its bound, in characters that need most bytes.
WIDE = "\U0001f525"


NUMBER = 1.2345678901234567e-300


def widest(length: int) -> str:
    return WIDE * length


def longest(length: int) -> str:
    """Of printable ASCII, as JSON spells it."""
    return '"' * length


NOISE = {"noise": longest(32)} | dict.fromkeys(("level", "loss", "deviation", "failed"), NUMBER)


PHASE = longest(16)


def exit_at_its_bounds() -> ExitRecord:
    return ExitRecord.model_validate(
        EXIT
        | {
            "schemaVersion": 1,
            "jobUid": widest(64),
            "podName": "p" * 253,
            "reason": "R" * 64,
            "message": widest(MESSAGE_LENGTH_MAX),
            "rank": 2**31,
            "step": 10**8,
            "exceptionType": widest(128),
            "frames": [widest(FRAME_LENGTH_MAX)] * FRAMES_MAX,
            "accounts": dict.fromkeys(TimeAccounts.model_fields, NUMBER),
            "robustness": [NOISE] * ROBUSTNESS_MAX,
        }
    )


def report_at_its_bounds() -> TrainerReport:
    number = NUMBER
    figures = {
        name: number
        for name, info in TrainerReport.model_fields.items()
        if float in (info.annotation, *get_args(info.annotation))
    }
    return TrainerReport.model_validate(
        REPORT
        | figures
        | {
            "jobUid": widest(64),
            "gang": widest(64),
            "state": max(get_args(State), key=len),
            "message": widest(MESSAGE_LENGTH_MAX),
            "checkpointError": widest(MESSAGE_LENGTH_MAX),
            "storageIsFull": False,
            "exportPath": widest(512),
            "schemaVersion": 1,
            "lossIsFinite": False,
            "step": 10**8,
            "totalSteps": 10**8,
            "validationStep": 10**8,
            "skippedSteps": 10**8,
            "clippedSteps": 10**8,
            "rewinds": 1000,
            "rateScale": 0.5**1000,
            "isStable": False,
            "healthyStep": 10**8,
            "notice": widest(NOTICE_LENGTH_MAX),
            "lastRemedy": {
                "remedy": longest(32),
                "fault": longest(32),
                "step": 10**8,
                "toStep": 10**8,
                "message": widest(MESSAGE_LENGTH_MAX),
                "time": "2026-01-01T00:00:00Z",
            },
            "replayedSteps": 10**8,
            "resumedFromStep": 10**8,
            "passedOver": widest(NOTICE_LENGTH_MAX),
            "tokens": 10**17,
            "stepTime": TIME,
            "firstStepTime": TIME,
            "parameters": 10**13,
            "timeSeconds": {longest(30) + f"{n:02}": number for n in range(32)},
            "checkpoint": {
                "step": 10**8,
                "path": widest(512),
                "time": TIME,
                "sizeBytes": 10**15,
                "sha256": widest(64),
            },
            "accounts": dict.fromkeys(TimeAccounts.model_fields, number),
            "labels": [widest(LABEL_LENGTH_MAX)] * (LABELS_SHOWN_MAX + 1),
            "cutExamples": 10**8,
            "robustness": [NOISE] * ROBUSTNESS_MAX,
            "checkpointInterval": dict.fromkeys(IntervalReport.model_fields, number),
            "ranks": [
                {"rank": 10**6, "heartbeatAgeSeconds": number, "phase": PHASE, "score": number}
            ]
            * RANKS_REPORTED_MAX,
            "slowestRanks": [
                {
                    "rank": 10**6,
                    "score": number,
                    "seconds": number,
                    "isStraggler": False,
                }
            ]
            * SLOWEST_RANKS_MAX,
            "lastFault": {
                "round": 1000,
                "failureClass": "OutOfMemory",
                "reason": "R" * 64,
                "message": widest(MESSAGE_LENGTH_MAX),
                "rank": 10**6,
                "step": 10**8,
                "hasStepped": True,
                "ranks": [
                    {
                        "rank": 10**6,
                        "phase": PHASE,
                        "silentSeconds": number,
                        "frame": longest(SHORT_FRAME_LENGTH_MAX),
                    }
                ]
                * HUNG_RANKS_MAX,
                "time": TIME,
            },
            "applied": {
                "generation": 10**6,
                "checkpoint": longest(REQUEST_LENGTH_MAX),
                "checkpointStep": 10**8,
                "rollback": longest(REQUEST_LENGTH_MAX),
                "rollbackStep": 10**8,
                "refusal": longest(REFUSAL_LENGTH_MAX),
            },
            "lastExit": exit_at_its_bounds().model_dump(),
        }
    )
