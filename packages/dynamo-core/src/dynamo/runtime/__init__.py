"""The distributed runtime: discovery, planes, health, metrics and shutdown of one process."""
