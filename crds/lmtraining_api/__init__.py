"""The contract of lm-training-operator: every resource, report and record, and nothing else."""

from lmtraining_api import names
from lmtraining_api.base import BEGUN, Record, Rule, SpecModel, StatusModel, TransitionRule
from lmtraining_api.exits import CLASS_OF_CODE, CODE_OF_CLASS, ExitCode, FailureClass
from lmtraining_api.explain import explain_validation_error
from lmtraining_api.job import LMTrainingJob, LMTrainingJobSpec, TrainingSpec
from lmtraining_api.problems import problems_of
from lmtraining_api.records import (
    CheckpointReport,
    ExitRecord,
    FaultReport,
    Intent,
    IntervalReport,
    JobFile,
    JournalEntry,
    Peer,
    RankHealth,
    RankScore,
    RankStack,
    RemedyReport,
    RobustnessReport,
    State,
    TimeAccounts,
    TrainerReport,
)
from lmtraining_api.status import (
    Condition,
    ConditionType,
    LMTrainingJobStatus,
)
from lmtraining_api.wishes import Applied, RollbackWish, Wishes

__all__ = [
    "BEGUN",
    "CLASS_OF_CODE",
    "CODE_OF_CLASS",
    "Applied",
    "CheckpointReport",
    "Condition",
    "ConditionType",
    "ExitCode",
    "ExitRecord",
    "FailureClass",
    "FaultReport",
    "Intent",
    "IntervalReport",
    "JobFile",
    "JournalEntry",
    "LMTrainingJob",
    "LMTrainingJobSpec",
    "LMTrainingJobStatus",
    "Peer",
    "RankHealth",
    "RankScore",
    "RankStack",
    "Record",
    "RemedyReport",
    "RobustnessReport",
    "RollbackWish",
    "Rule",
    "SpecModel",
    "State",
    "StatusModel",
    "TimeAccounts",
    "TrainerReport",
    "TrainingSpec",
    "TransitionRule",
    "Wishes",
    "explain_validation_error",
    "names",
    "problems_of",
]
