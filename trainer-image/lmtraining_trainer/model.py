"""The model, which knows nothing of ranks, precision or devices.

Promise: the same config and seed give the same weights on every rank; what is exported is a plain
model of the transformers library.
Trap avoided: a checkpoint of another shape is refused by its fingerprint, in words, before a tensor
is read. (The model classes are imported here and not looked up by name, so that the fork server has
them and a restart need not.)
"""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.data.tokenizer import END_OF_TEXT_ID
from lmtraining_trainer.files import json_bytes, sha256_of

#: Width of llama's feed-forward layer: 8/3 of the hidden size (Touvron et al. 2023), rounded up.
FEED_FORWARD_MULTIPLE = 64


def build_model(spec: TrainingSpec) -> PreTrainedModel:
    """A new model on the CPU, its weights drawn from training.seed.

    The generators of torch are left seeded: the caller restores or seeds them next.
    """
    torch.manual_seed(spec.training.seed)
    model: PreTrainedModel = (
        GPT2LMHeadModel(_gpt2(spec))
        if spec.model.config.architecture == "gpt2"
        else LlamaForCausalLM(_llama(spec))
    )
    model.train()
    return model


def empty_model(spec: TrainingSpec) -> PreTrainedModel:
    """The same on the CPU without a value in it, at once: every parameter is to be written before
    it is exported. It cannot compute: its buffers, which no export holds, have no values either."""
    with torch.device("meta"):
        model = build_model(spec)
    model.to_empty(device="cpu")
    model.tie_weights()  # each user of a tied weight was given memory of its own
    return model


def blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Its transformer blocks, first to last."""
    body: Any = model.base_model
    return list(body.h if model.config.model_type == "gpt2" else body.layers)


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def shape_of(spec: TrainingSpec) -> dict[str, str | int]:
    """What decides the names and shapes of the weights."""
    config = spec.model.config
    return {
        "task": spec.model.task,
        "architecture": config.architecture,
        "layers": config.layers,
        "hiddenSize": config.hidden_size,
        "heads": config.heads,
        "vocabSize": spec.data.tokenizer.vocab_size,
        "sequenceLength": spec.data.sequence_length,
    }


def fingerprint(shape: dict[str, str | int]) -> str:
    """A name for a shape: checkpoints of equal fingerprints are interchangeable."""
    return sha256_of(json_bytes(shape))


def _gpt2(spec: TrainingSpec) -> GPT2Config:
    config = spec.model.config
    return GPT2Config(
        vocab_size=spec.data.tokenizer.vocab_size,
        n_positions=spec.data.sequence_length,
        n_embd=config.hidden_size,
        n_layer=config.layers,
        n_head=config.heads,
        # The same function as GPT-2's own, which transformers computes in eight passes over memory.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )


def _llama(spec: TrainingSpec) -> LlamaConfig:
    config = spec.model.config
    width = -(-config.hidden_size * 8 // 3 // FEED_FORWARD_MULTIPLE) * FEED_FORWARD_MULTIPLE
    return LlamaConfig(
        vocab_size=spec.data.tokenizer.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=spec.data.sequence_length,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
