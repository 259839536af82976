"""Plan a fleet: the fewest replicas under which nine readers in ten get a QoE of 0.95, stock and with andes.

``andes plan`` does this on the command line, with several seeds, mixes of two kinds of replica, and prices.
"""

from andes_sglang import QoEObjective, draw_shape, load_profile, make_policy, score_fleet, smallest_feasible

profile = load_profile("cpu-tiny-llama")
objective = QoEObjective.parse("share(0.95)>=0.9")
workload = draw_shape("burst", rate_rps=12.0, duration_s=30.0, prompt="200-400", output="150-250", seed=1)
workload = workload.with_readers(1, ttft_s=1.0, tds=None, population="reading")

for name in ("stock", "andes"):

    def holds(replicas: int, name: str = name) -> bool:
        """Whether that many replicas hold the objective; SGLang's own scheduling has no policy object."""
        scores, _ = score_fleet(
            [profile.engine] * replicas,
            lambda: None if name == "stock" else make_policy(name),
            workload,
            decision_interval_s=0.1,
        )
        print(f"{name}: {replicas} replicas, {objective.words} is {objective.of(scores):.3f}")
        return objective.met(objective.of(scores))

    print(f"{name} needs {smallest_feasible(holds, guess=4, maximum=16)}")
