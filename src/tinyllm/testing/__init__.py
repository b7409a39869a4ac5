"""The simulated world in which TinyLLM and the applications built on it are tested."""
