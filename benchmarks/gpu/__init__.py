"""The engine on a GPU, in one call of at most nine minutes; docs/benchmarks/engine-gpu.md says how."""
