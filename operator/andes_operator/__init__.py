"""The operator: GPU pods scaled on the QoE that readers get, by a what-if with the policy that runs in the engines.

Pure: `spec`, `observe`, `forecast`, `whatif`, `decide`, `victims`, `status`. With the world outside: `cluster`, `gateways`,
`lease`, `telemetry`, `reconcile`, `handlers`. kopf is imported only by `handlers`.
"""
