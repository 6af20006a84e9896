"""Language models: GPT and Llama, the encoder BERT, and the packaged weights for them."""

from llm_learn.model.gpt import GPT, GPTConfig
from llm_learn.model.llama import Llama, LlamaConfig
from llm_learn.model.pretrained import load_smollm2

__all__ = ["GPT", "GPTConfig", "Llama", "LlamaConfig", "load_smollm2"]
