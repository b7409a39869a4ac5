"""The `tinyllm` command."""
