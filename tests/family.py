"""A tiny model of a second family, with a tokenizer of its own: what gates must not take for granted."""

from __future__ import annotations

import json
from pathlib import Path

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SENTENCES = (
    "what is the capital of France and who wrote the long letter to the river",
    "the quick brown fox jumps over the lazy dog and runs into the quiet wood",
    "a question of numbers and of documents with many words",
)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def write_gemma(folder: Path) -> Path:
    """Random Gemma 3 weights of four layers (three with a window of 8 tokens) and a Unigram-free BPE of 420 ids."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text.upper() for text in SENTENCES] + list(SENTENCES), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), SPECIAL, strict=False))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | named))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    torch.manual_seed(11)
    config = Gemma3TextConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=48, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, sliding_window=8, max_position_embeddings=512,
        layer_types=["sliding_attention"] * 3 + ["full_attention"], final_logit_softcapping=30.0,
        initializer_range=0.3, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder
