"""The byte-level BPE of a job: trained on its own text.

Promise: any text can be encoded and comes back unchanged; the same text gives the same tokenizer;
the vocabulary has exactly the entries the job asked for.
Trap avoided: a document that spells out "<|endoftext|>" must not become the end-of-text token, so
special tokens are never recognised in text.
"""

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
LANGUAGE_MODEL_TOKENS = (END_OF_TEXT,)
#: Special tokens of a model that looks at a text as a whole.
ENCODER_TOKENS = (END_OF_TEXT, "<|pad|>", "<|mask|>")
PAD_ID, MASK_ID = 1, 2


def train_tokenizer(
    texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str] = LANGUAGE_MODEL_TOKENS
) -> Tokenizer:
    """A tokenizer with `vocab_size` entries, of which `special_tokens` are the first. Raises
    TrainerError(DATA) where the text is too little for so many; whatever `texts` raises comes
    through."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    supported = tokenizer.get_vocab_size()
    if supported < vocab_size:
        raise TrainerError(
            FailureClass.DATA,
            "VocabularyTooLarge",
            f"data.tokenizer.vocabSize {vocab_size} is more than the training text supports, which "
            f"is {supported}: set it to {supported} or less, or add text",
        )
    return for_encoding(tokenizer)


def load_tokenizer(definition: str) -> Tokenizer:
    """The tokenizer whose tokenizer.json is `definition`, ready to encode all of a text: what the
    file says of cutting and padding is left out."""
    tokenizer = for_encoding(Tokenizer.from_str(definition))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def for_encoding(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, so that special tokens in the text are plain text (not kept in its file)."""
    tokenizer.encode_special_tokens = True
    return tokenizer
