"""The finished model, as anyone can load it.

Promise: `export/` opens with the plain `AutoModel` class of its task and `AutoTokenizer`, and gives
the logits of the trained model; it appears whole, by one rename.
"""

import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from lmtraining_trainer.data.prepared import PreparedData
from lmtraining_trainer.data.pretrained import TOKENIZER_FILES, BaseModel
from lmtraining_trainer.data.tokenizer import (
    ENCODER_TOKENS,
    END_OF_TEXT,
    MASK_ID,
    PAD_ID,
    load_tokenizer,
)
from lmtraining_trainer.files import publish_directory, remove_directory, temporary_beside
from lmtraining_trainer.run import Run
from lmtraining_trainer.run.directory import EXPORT


def write_export(
    run: Run, model: PreTrainedModel, *, data: PreparedData, sequence_length: int
) -> Path:
    """Publish the model and its tokenizer; returns the directory.

    Raises OSError where storage fails, TrainerError("Fenced").
    """
    final = run.directory / EXPORT
    temporary = temporary_beside(final)
    try:
        temporary.mkdir()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model.save_pretrained(temporary, safe_serialization=True)
        if data.base is None:
            exported_tokenizer(data.tokenizer_json, sequence_length).save_pretrained(temporary)
        else:
            _copy_tokenizer(data.base, temporary)
        publish_directory(temporary, final, lambda: _make_way(run, final))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if run.mirror is not None:  # whole once the finished marker says so
        run.mirror.keep_directory(final)
    return final


def _make_way(run: Run, final: Path) -> None:
    """Free the name `final`. Raises TrainerError("Fenced")."""
    run.fence.check()
    if final.exists():  # of the same run with a smaller budget
        remove_directory(final)
        run.fence.check()


def _copy_tokenizer(base: BaseModel, to: Path) -> None:
    """As it came: its own settings, special tokens and chat template."""
    for name in TOKENIZER_FILES:
        if (base.directory / name).exists():
            shutil.copyfile(base.directory / name, to / name)


def exported_tokenizer(tokenizer_json: str, sequence_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers knows it; its text begins and ends with the same token."""
    tokenizer = load_tokenizer(tokenizer_json)
    names = {"pad_token": PAD_ID, "mask_token": MASK_ID}
    is_encoders = tokenizer.id_to_token(PAD_ID) == ENCODER_TOKENS[PAD_ID]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        **{name: ENCODER_TOKENS[number] for name, number in names.items() if is_encoders},
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=sequence_length,
        clean_up_tokenization_spaces=False,
    )
