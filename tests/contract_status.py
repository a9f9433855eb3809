"""A status in which every field is set, as the operator would write it."""

from typing import Any

from lmtraining_api import ConditionType, FailureClass

TIME = "2026-01-31T12:00:00Z"
LATER = "2026-01-31T12:05:00Z"


def condition(kind: str, status: str, reason: str, message: str = "A sentence.") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": TIME,
        "observedGeneration": 1,
    }


FULL_STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "startTime": TIME,
    "firstRunTime": TIME,
    "completionTime": LATER,
    "conditions": [
        condition(ConditionType.SUCCEEDED, "Unknown", "Training", "step 42 of 100"),
        condition(ConditionType.ACCEPTED, "True", "Valid"),
        condition(ConditionType.DATA_READY, "True", "Ready"),
        condition(ConditionType.SCHEDULED, "True", "Scheduled"),
        condition(ConditionType.PROGRESSING, "True", "Stepping"),
        condition(ConditionType.HEALTHY, "True", "Stable"),
        condition(ConditionType.CHECKPOINTED, "True", "Fresh"),
    ],
    "applied": {
        "generation": 3,
        "checkpoint": "before-lunch",
        "checkpointStep": 40,
        "rollback": "nowhere",
        "rollbackStep": 8,
        "refusal": "A sentence.",
    },
    "attempt": 2,
    "round": 1,
    "trainerImage": "registry.example/trainer:1",
    "nextAttemptTime": LATER,
    "replacedPods": {"1": 1},
    "waitsInPlace": True,
    "restarts": {"total": 3, "counted": 2, "byReason": {FailureClass.CRASH: 2, "Disruption": 1}},
    "progress": {
        "step": 42,
        "totalSteps": 100,
        "percent": "42%",
        "eta": "1h20m",
        "tokens": 2688,
        "stepTime": TIME,
        "reportTime": TIME,
    },
    "metrics": {
        "loss": "3.21",
        "validationLoss": "3.40",
        "unigramLoss": "6.01",
        "gradientNorm": "0.91",
        "learningRate": "5.9e-04",
        "tokensPerSecond": "12.3k",
        "checkpointInterval": "4m10s",
        "checkpointCost": "0.35",
        "timeBetweenFaults": "12d3h",
        "precision": "bf16",
        "parameters": 4096,
        "updateRatio": "3.1e-04",
        "updateRms": "0.31",
        "swallowed": "3%",
        "attentionLogitBound": "12.5",
        "activationMax": "31.2",
        "noiseScaleTokens": "5120",
    },
    "goodput": {
        "share": "50.0%",
        "wallTime": "1h",
        "productive": "30m",
        "startup": "10s",
        "compile": "20s",
        "dataWait": "1s",
        "checkpoint": "40s",
        "replayedSteps": "5m",
        "recovery": "3m",
        "evaluation": "1m",
        "stopped": "20m",
        "other": "2s",
    },
    "robustness": [
        {"noise": "tokens", "level": "5%", "loss": "3.5", "deviation": "0.01", "failed": "0%"},
    ],
    "stability": {
        "skippedSteps": 1,
        "clippedSteps": 2,
        "rewinds": 1,
        "rateScale": "0.5",
        "healthyStep": 400,
        "notice": "the loss has not fallen since step 384",
        "lastRemedy": {
            "remedy": "Rewind",
            "fault": "Divergence",
            "step": 700,
            "toStep": 400,
            "message": "the loss has risen to 4.1 from its best level 3.2",
            "time": "2026-01-01T00:00:00Z",
        },
    },
    "checkpoint": {
        "lastStep": 40,
        "lastTime": TIME,
        "path": "checkpoints/step-40",
        "sizeBytes": 2**40,
        "sha256": "a" * 64,
    },
    "lastFailure": {
        "failureClass": "Crash",
        "reason": "RankRaised",
        "message": "rank 1 raised ValueError at step 30.",
        "attempt": 1,
        "pod": "tiny-1-0-0",
        "replacedBy": "tiny-1-0-1",
        "node": "node-a",
        "rank": 1,
        "step": 30,
        "exitCode": 89,
        "frames": ["loop.py:10 train", "loop.py:20 step"],
        "time": TIME,
    },
    "lastRecovery": {
        "faultTime": TIME,
        "firstStepTime": LATER,
        "seconds": "4.2",
        "loadSeconds": "0.3",
        "fault": "Crash: rank 1 was killed by SIGKILL",
        "resumedFromStep": 25,
        "passedOver": "checkpoints passed over: step 30 (manifest.json is missing)",
        "replayedSteps": 5,
    },
    "artifacts": {
        "claim": "tiny-checkpoints",
        "uri": "s3://bucket/team",
        "runDirectory": "runs/tiny-1234",
        "export": "runs/tiny-1234/export",
    },
}
