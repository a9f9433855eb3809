"""Text from an exported model, for a first look."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

#: Sampling that shows a small model at its best without hiding what it is.
TEMPERATURE = 0.8
TOP_K = 50


def sample(export_directory: str | Path, prompt: str, tokens: int, seed: int) -> str:
    """`prompt` and up to `tokens` more tokens; the same text for the same seed.

    An empty prompt begins a new document. Raises OSError where there is no exported model.
    """
    tokenizer = AutoTokenizer.from_pretrained(export_directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(export_directory, local_files_only=True)
    model.train(False)
    start = tokenizer(prompt or tokenizer.bos_token, return_tensors="pt").input_ids
    context = tokenizer.model_max_length
    generator = torch.Generator().manual_seed(seed)
    ids = start
    with torch.inference_mode():
        for _ in range(tokens):
            logits = model(ids[:, -context:]).logits[:, -1] / TEMPERATURE
            best, indices = logits.topk(min(TOP_K, logits.shape[-1]))
            drawn = torch.multinomial(best.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, indices.gather(1, drawn)], dim=1)
            if int(ids[0, -1]) == tokenizer.eos_token_id:
                break
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))
