"""What is trained for: a module per task, behind one protocol.

Promise: the loop, the guard, the checkpoints and the layouts know of no task; what differs between
tasks is what `Task` names, and nothing else.
"""

from collections.abc import Mapping

from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.tasks.backward import BackwardLM
from lmtraining_trainer.tasks.causal import CausalLM
from lmtraining_trainer.tasks.masked import MaskedLM
from lmtraining_trainer.tasks.sequence_classification import SequenceClassification
from lmtraining_trainer.tasks.task import Examples, Task
from lmtraining_trainer.tasks.token_classification import TokenClassification

_TASKS: Mapping[str, Task] = {
    "causal-lm": CausalLM(),
    "backward-lm": BackwardLM(),
    "masked-lm": MaskedLM(),
    "sequence-classification": SequenceClassification(),
    "token-classification": TokenClassification(),
}


def task_of(spec: TrainingSpec) -> Task:
    """The task of a job."""
    return _TASKS[spec.model.task]


__all__ = ["Examples", "Task", "task_of"]
