"""``dynamo serve``: the graph on this machine, one local process per replica.

`LocalScheduler` runs components (the ``local`` scheduler plugin); `dynamo.serve.command` is the command line in front
of it. A process leads a session of its own, is started through `dynamo.serve.launcher` and is known to the
`dynamo.serve.guardian`, so nothing outlives ``dynamo serve``, not even when that is killed with SIGKILL.
"""
