"""Replay a workload against any OpenAI-compatible endpoint and see what its readers see."""
