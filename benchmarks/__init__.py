"""The project's evidence: timings and simulated comparisons. Each is a command: ``python benchmarks/NAME.py --help``.

No product code imports from here. What benchmarks share: :mod:`~benchmarks.lengths`, :mod:`~benchmarks.markdown`,
:mod:`~benchmarks.processes`.
"""
