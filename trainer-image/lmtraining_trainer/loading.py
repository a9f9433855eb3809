"""A model that others have trained, in memory.

Promise: each of its weights is from the checkpoint, in fp32.
Trap avoided: transformers draws weights that a file lacks at random, with a warning that nobody
reads.
"""

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lmtraining_api import FailureClass
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.device import is_out_of_memory
from lmtraining_trainer.errors import TrainerError, shown


def loaded(base: BaseModel) -> PreTrainedModel:
    """`base` on the CPU. Raises TrainerError(DATA) where weights are missing or have another
    shape."""
    found: Any
    try:
        found = AutoModelForCausalLM.from_pretrained(
            base.directory,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise _unusable(f"does not load ({type(error).__name__})") from error
    model: PreTrainedModel = found[0]
    lacking = sorted(found[1]["missing_keys"])
    if lacking:
        raise _unusable(f"lacks {len(lacking)} weights ({shown(lacking)})")
    return model


def unloaded(base: BaseModel) -> PreTrainedModel:
    """The same with weights that mean nothing."""
    config = AutoConfig.from_pretrained(base.directory)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def _unusable(what: str) -> TrainerError:
    return TrainerError(
        FailureClass.DATA,
        "PretrainedUnusable",
        f"the checkpoint of model.pretrained.uri {what}: put there a whole one of a causal "
        "language model",
    )
