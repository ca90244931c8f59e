"""Invariants of the engine model under any load: KV blocks and sequences are conserved, time grows, nobody is lost."""

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.profiles import PROFILES
from equipoise_simulator.sequence import Sequence, SequenceState

SMALL = replace(PROFILES["fast"], kv_tokens=320, max_model_len=300, max_num_seqs=4, max_num_batched_tokens=64)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 150), st.integers(1, 150), st.integers(-1, 1)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.booleans()),
    ),
    max_size=60,
)


def held_blocks(model, sequences):
    total = 0
    for sequence in sequences:
        if sequence.state is SequenceState.PREFILLING:
            total += -(-sequence.context_at_join // 16)
        elif sequence.state is SequenceState.DECODING:
            total += -(-(sequence.prompt_tokens + model.generated(sequence) - 1) // 16)
    return total


class Watched:
    """A model whose tokens are counted from its events alone."""

    def __init__(self, *, priority_scheduling):
        self.model = EngineModel(SMALL, priority_scheduling=priority_scheduling)
        self.tokens = {}
        self.now = 0.0

    def act(self, action, *arguments):
        if action == "add":
            sequence = Sequence(*arguments[:2], priority=arguments[2], arrival=self.now)
            self.model.add(sequence)
            self.tokens[sequence] = 0
        elif action == "step":
            self.step(jump=arguments[0])
        elif arguments[0] < len(self.tokens):
            self.model.abort(list(self.tokens)[arguments[0]])

    def step(self, *, jump):
        if self.model.begin(self.now, until=math.inf if jump else None) is None:
            return False
        ended = self.model.finish()
        assert ended.ends > self.now
        self.now = ended.ends
        for sequence in ended.first:
            self.tokens[sequence] += 1
        for sequence in ended.advanced:
            self.tokens[sequence] += ended.count
        return True

    def check(self):
        model, states = self.model, [sequence.state for sequence in self.tokens]
        assert model.free_blocks + held_blocks(model, self.tokens) == SMALL.kv_blocks
        assert model.waiting == states.count(SequenceState.WAITING)
        assert model.running == states.count(SequenceState.PREFILLING) + states.count(SequenceState.DECODING)
        assert all(model.generated(sequence) == count for sequence, count in self.tokens.items())


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS, priority_scheduling=st.booleans())
def test_blocks_and_sequences_are_conserved(actions, priority_scheduling):
    watched = Watched(priority_scheduling=priority_scheduling)
    for action in actions:
        watched.act(*action)
        watched.check()
    while watched.step(jump=True):
        pass
    assert watched.model.idle
    assert watched.model.free_blocks == SMALL.kv_blocks
    for sequence, count in watched.tokens.items():
        assert sequence.state in (SequenceState.FINISHED, SequenceState.ABORTED)
        assert sequence.state is SequenceState.ABORTED or count == sequence.output_tokens
