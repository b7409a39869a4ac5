"""TinyLLM: graphs of small language models, and the suite that breaks them before production does."""
