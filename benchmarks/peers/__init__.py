"""Programs that run a peer's code in an environment of its own, and what they share with the benchmarks."""
