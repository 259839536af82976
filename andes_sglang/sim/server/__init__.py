"""The simulated engine as a real HTTP server: a replica driven by the wall clock, speaking as SGLang 0.5.23 does.

Neither torch nor SGLang is imported; a clock is read in ``live`` only.
"""
