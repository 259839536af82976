"""Discrete-event simulation of a replica with the very policy objects that run in the engine."""
