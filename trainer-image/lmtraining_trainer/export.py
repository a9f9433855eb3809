"""The finished model, as anyone can load it.

Promise: `export/` opens with plain `AutoModelForCausalLM` and `AutoTokenizer` and gives the logits
of the trained model; it appears whole, by one rename.
"""

import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from lmtraining_trainer.data.tokenizer import END_OF_TEXT, load_tokenizer
from lmtraining_trainer.files import publish_directory, remove_directory, temporary_beside
from lmtraining_trainer.run import Run
from lmtraining_trainer.run.directory import EXPORT


def write_export(
    run: Run, model: PreTrainedModel, *, tokenizer_json: str, sequence_length: int
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
        exported_tokenizer(tokenizer_json, sequence_length).save_pretrained(temporary)
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


def exported_tokenizer(tokenizer_json: str, sequence_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers knows it; its text begins and ends with the same token."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=load_tokenizer(tokenizer_json),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=sequence_length,
        clean_up_tokenization_spaces=False,
    )
