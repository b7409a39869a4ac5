"""Disks of the world: files that forget, at a crash, what was not synced; SQLite runs on them."""
