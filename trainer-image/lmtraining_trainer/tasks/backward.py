"""The backward language model: predict the token before, so that a text is read from its end.

Promise: it is a causal model of the reversed tokens, from the same prepared data: reversed as a
whole, the packed text has its documents reversed one by one, each between two end-of-text tokens.
Trap avoided: a model that nobody can tell from one that reads forwards. Its config says which way
it reads, and `lmtraining sample` turns the text round by it.
"""

from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.tasks.causal import CausalLM

#: In config.json of the export: the order in which the model takes its tokens.
DIRECTION, RIGHT_TO_LEFT = "reading_direction", "right-to-left"


def reads_backwards(config: PreTrainedConfig) -> bool:
    """Whether a model with this config takes the last token of a text first."""
    return getattr(config, DIRECTION, None) == RIGHT_TO_LEFT


class BackwardLM(CausalLM):
    """Reads a text from right to left."""

    backwards = True

    def model(
        self, spec: TrainingSpec, labels: Sequence[str], base: BaseModel | None
    ) -> PreTrainedModel:
        model = super().model(spec, labels, base)
        setattr(model.config, DIRECTION, RIGHT_TO_LEFT)
        return model
