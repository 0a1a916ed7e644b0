"""Replays traces through the production router on virtual time, with simulated workers.

`traces` reads them, `simulation` runs one router mode over one trace, `results` makes numbers of it, `report` and
`plot` show them; `command` is ``dynamo replay``.
"""
