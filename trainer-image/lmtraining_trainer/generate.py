"""Text from an exported model, for a first look."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmtraining_trainer.tasks.backward import reads_backwards

#: Sampling that shows a small model at its best without hiding what it is.
TEMPERATURE = 0.8
TOP_K = 50


def sample(export_directory: str | Path, prompt: str, tokens: int, seed: int) -> str:
    """`prompt` and up to `tokens` more tokens, after it or, where the model reads backwards, before
    it; the same text for the same seed.

    An empty prompt begins a new document, or the end of one. Raises OSError where there is no
    exported model.
    """
    tokenizer = AutoTokenizer.from_pretrained(export_directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(export_directory, local_files_only=True)
    model.train(False)
    is_backwards = reads_backwards(model.config)
    beginning = torch.tensor([[_beginning(tokenizer, model.config)]])
    ids = tokenizer(prompt, return_tensors="pt").input_ids if prompt else beginning
    ids = ids.flip(1) if is_backwards else ids
    context = _context(tokenizer, model.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for _ in range(tokens):
            logits = model(ids[:, -context:]).logits[:, -1] / TEMPERATURE
            best, indices = logits.topk(min(TOP_K, logits.shape[-1]))
            drawn = torch.multinomial(best.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, indices.gather(1, drawn)], dim=1)
            if int(ids[0, -1]) == tokenizer.eos_token_id:
                break
    text = ids[0].flip(0) if is_backwards else ids[0]
    return str(tokenizer.decode(text, skip_special_tokens=True))


def _beginning(tokenizer: Any, config: Any) -> int:
    """The token that a document follows: many models have none of their own for it but the one that
    ends the document before."""
    of_model = config.eos_token_id
    ends = of_model[0] if isinstance(of_model, list) else of_model
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, ends, 0)
    return int(next(token for token in known if token is not None))


def _context(tokenizer: Any, config: Any) -> int:
    """Tokens that the model reads; a tokenizer that names no limit names 10^30."""
    positions = getattr(config, "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, positions or sys.maxsize, sys.maxsize))
