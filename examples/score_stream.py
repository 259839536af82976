"""Score a text stream by the quality of experience of its reader.

The reader expects the first token after one second and reads five tokens per second. The stream stops for three seconds in
the middle: what the reader had not read yet covers a part of it.
"""

from andes_sglang import QoETarget, ReaderStream, qoe_of_deliveries

target = QoETarget(ttft_s=1.0, tds=5.0)
deliveries_s = [0.5 + 0.1 * k for k in range(20)] + [5.4 + 0.1 * k for k in range(20)]  # after the arrival at 0

# While it runs: what the engine keeps of each stream, a few numbers whatever its length.
reader = ReaderStream(arrival_s=0.0, target=target)
for at_s in deliveries_s:
    reader.deliver(at_s)
    if reader.delivered % 10 == 0:
        print(
            f"{at_s:4.1f} s  {reader.delivered:2d} tokens, {reader.buffered_tokens(at_s):4.1f} of them unread, "
            f"QoE so far {reader.qoe_at(at_s):.3f}"
        )

# At its end.
print(f"stalls: {reader.stalls}, {reader.stall_s:.2f} s in all")
print(f"QoE: {reader.final_qoe():.3f}")

# The same in one call, from delivery times alone.
assert qoe_of_deliveries(deliveries_s, 0.0, target) == reader.final_qoe()
