"""An engine whose steps can be counted on fingers."""

from equipoise_simulator.profiles import Profile

CLOCK = Profile(
    name="clock",
    a0=1.0,
    a1=0.0,
    a2=0.0,
    a3=0.0,
    kv_tokens=320,
    max_model_len=320,
    max_num_seqs=2,
    block_size=1,
)
"""A step takes a second, whatever it does; prompts need one step, then each sequence gets a token a step."""
