"""Tables and figures of the benchmark, rendered from result files; no training, no torch."""
