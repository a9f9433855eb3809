"""The architectures that a model can be built with, each as a config of transformers.

Promise: what a job says of its model is all that shapes it; the rest is what the architecture's
authors chose.
"""

from collections.abc import Callable, Mapping

from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig

from lmtraining_api.job import ModelConfig, TrainingSpec
from lmtraining_trainer.data.tokenizer import END_OF_TEXT_ID, PAD_ID

#: Width of llama's feed-forward layer: 8/3 of the hidden size (Touvron et al. 2023), rounded up.
FEED_FORWARD_MULTIPLE = 64


def new_config(spec: TrainingSpec) -> ModelConfig:
    """What the job says of its new model. Raises ValueError where it goes on from another."""
    if spec.model.config is None:
        raise ValueError("a job with model.pretrained has no model.config")
    return spec.model.config


def config_of(spec: TrainingSpec) -> PreTrainedConfig:
    """The config of the job's model, without what its task adds."""
    return _CONFIGS[new_config(spec).architecture](spec)


def _gpt2(spec: TrainingSpec) -> GPT2Config:
    config = new_config(spec)
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
    config = new_config(spec)
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


def _bert(spec: TrainingSpec) -> BertConfig:
    config = new_config(spec)
    return BertConfig(
        vocab_size=spec.data.tokenizer.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=4 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=spec.data.sequence_length,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=PAD_ID,
    )


_CONFIGS: Mapping[str, Callable[[TrainingSpec], PreTrainedConfig]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "bert": _bert,
}
