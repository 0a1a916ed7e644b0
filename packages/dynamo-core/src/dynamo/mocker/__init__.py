"""A simulated engine: it schedules, caches and takes time as a real one does, and computes nothing.

`core` is the pure scheduler (`now` is passed in), over `block_pool` and `perf_model`; `dynamo.replay` drives it on
virtual time. `engine` is the plugin around it, which sleeps for as long as a step would take.
"""
