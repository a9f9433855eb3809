"""What the text of a job is prepared to, by its task.

Promise: tasks that read the same form share the prepared data. (No torch is imported for it, so
that data can be prepared before anything waits for that.)
"""

from enum import StrEnum

from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.data.tokenizer import ENCODER_TOKENS, LANGUAGE_MODEL_TOKENS


class Form(StrEnum):
    """What lies in the directory of prepared data."""

    TEXT = "text"
    """Packed tokens of a running text."""
    ENCODER_TEXT = "encoder-text"
    """The same, by a tokenizer that has the special tokens of an encoder."""

    LABELLED_TEXT = "labelled-text"
    """Tokens of examples, by such a tokenizer, with a label for each."""
    TAGGED_TEXT = "tagged-text"
    """The same with a label for each word of an example."""

    @property
    def has_labels(self) -> bool:
        """Whether it is made from records with labels."""
        return self in {Form.LABELLED_TEXT, Form.TAGGED_TEXT}

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The first entries of the vocabulary."""
        return LANGUAGE_MODEL_TOKENS if self is Form.TEXT else ENCODER_TOKENS


def form_of(spec: TrainingSpec) -> Form:
    """What the data of a job is prepared to."""
    return _FORMS.get(spec.model.task, Form.TEXT)


_FORMS = {
    "masked-lm": Form.ENCODER_TEXT,
    "sequence-classification": Form.LABELLED_TEXT,
    "token-classification": Form.TAGGED_TEXT,
}
