"""Conformance suites: what a plugin must do, as checks that any author can run.

`dynamo.testing.engine_conformance` has the suite of the engine hook, `dynamo.testing.command` the command
``dynamo conformance``. Nothing is imported here, so that ``dynamo --help`` stays quick.
"""
