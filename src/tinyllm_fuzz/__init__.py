"""The commands that hunt: `tinyllm check` and `tinyllm replay`."""
