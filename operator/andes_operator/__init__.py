"""The operator: scales GPU pods on the QoE that readers get, by a what-if with the policy that runs in the engines.

Pure: `spec`, `observe`, `memory`, `forecast`, `demand`, `whatif`, `prediction`, `decide`, `conflict`, `victims`, `status`.
With the world outside: `cluster`, `gateways`, `prometheus`, `predictor`, `lease`, `telemetry`, `state`, `drain`, `report`.
A reconcile, read top to bottom: `reconcile`; when it runs: `controller`; kopf, in `watch` alone, tells it what has changed.
"""
