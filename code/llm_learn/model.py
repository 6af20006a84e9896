"""Re-exports the language models, for notebooks that import them from here."""

from llm_learn.gpt import GPT, GPTConfig
from llm_learn.llama import Llama, LlamaConfig
from llm_learn.pretrained import load_smollm2

__all__ = ["GPT", "GPTConfig", "Llama", "LlamaConfig", "load_smollm2"]
