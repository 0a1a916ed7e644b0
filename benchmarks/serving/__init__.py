"""What the frontend benchmarks serve, load and compare: a model directory, systems as processes, a lean client."""
