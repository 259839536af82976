"""Write a scheduling policy and compare it with the built-in ones, on a simulated engine in a surge.

A policy ranks the requests; ``pack`` turns the ranking into a decision that keeps the bounds of KV and batch. The same class
serves a real engine: ``andes serve --policy package.module:ShortestPromptFirst``. docs/policies.md tells the rest.
"""

from andes_sglang import Decision, SchedulerState, draw_shape, load_profile, make_policy, pack, simulate, summarise


class ShortestPromptFirst:
    """Admits the shortest prompt first and never preempts; long prompts starve while short ones keep arriving."""

    name = "shortest-prompt-first"
    may_starve = True

    def decide(self, state: SchedulerState) -> Decision:
        return pack(state, -state.requests.prompt_tokens)


engine = load_profile("cpu-tiny-llama").engine
workload = draw_shape(
    "burst", rate_rps=4.0, duration_s=60.0, prompt="50-800", output="100-200", intensity=2.0, seed=1
).with_readers(1, ttft_s=1.0, tds=None, population="reading")

policies = {"fcfs": make_policy("fcfs"), "mine": ShortestPromptFirst(), "andes": make_policy("andes")}
print("policy  mean QoE  5th percentile  TTFT p90, s  preemptions a request")
for name, policy in policies.items():
    figures = summarise(list(simulate(engine, policy, workload)))
    print(
        f"{name:6s}  {figures['qoe']['mean']:8.3f}  {figures['qoe']['p5']:14.3f}  {figures['ttft_s']['p90']:11.2f}  "
        f"{figures['preemptions_per_request']:21.2f}"
    )
