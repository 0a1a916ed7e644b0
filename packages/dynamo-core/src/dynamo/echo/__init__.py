"""Scripted tokens: an engine without a model, for tests and for people who write a backend.

`engine` is the example that plugin authors read, `blocks` a prefix cache that only keeps books, `replies` decides what
is answered, `settings` holds the engine's flags.
"""
