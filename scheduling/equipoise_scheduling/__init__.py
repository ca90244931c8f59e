"""Fair scheduling of LLM requests: who goes next, what may be in flight, and how fair it was. Pure.

No I/O, no clock, no asyncio, no logging: time is an argument (seconds, monotonic), so the sidecar, the simulator and
the tests run the same objects, and the same events give the same decisions.

Symbols
    f, g        tenants, between whom service is shared; w_f the weight of one
    in, out     prompt and generated tokens; cached: prompt tokens that the engine's prefix cache served
    h           cost of a request, by default  wp*(in - cached) + wc*cached + wq*out,  wp = wc = 1, wq = 2
    W_f(t1,t2)  service of f in an interval: h of the input when prefilled and of each output token when it comes
    c_f         f's virtual counter: what it has been charged, over w_f
    backlogged  has something queued and is not held at its own in-flight limit
    U           the most that one tenant has in flight and undelivered just after a dispatch

Parts, each along one axis
    contract, request   what every scheduler is asked and told, and the one life of a request
    base, books         the frame of a scheduler, and the bookkeeping that survives a change of algorithm
    tenant_queue, deadline_queue    how a tenant's requests wait: by arrival number, by deadline
    choice, band        whom is served: the least key, lazily kept; the most urgent within a band of a counter
    pace                seconds a prompt token and a step take at present
    counters            what is counted: charge, settle, refund and lift, exact in integers
    cost, prediction    what a request costs, how long its output is expected to be
    features, mixture, experts  what a body shows, and a mixture of experts that learns what it means
    mapper, least_squares, flight_load  latency and GPU utilisation to come, fitted to the engine, from what is in flight
    head_wait           since when a tenant's head has been it
    prompt_estimate     prompt tokens from bytes, without a tokenizer
    gate, window        what may be in flight: KV cache and slots; how many an engine takes that does not say
    bound, counter_bound    the fairness bounds, of service and of corrected counters: derivation, live value, watch
    holistic            two counters scheduled by as one
    measures, service_window    how fairness is measured, over a run and over a sliding window
    last_minute         what happened in the last minute, in slices
    schedulers, registry, history   the algorithms, the API's names for them, and a change between two

Papers and how this differs
    VTC, *Fairness in Serving Large Language Models*, Sheng et al., OSDI 2024, https://arxiv.org/abs/2401.00588.
        Counters, lift, weights, prediction and the no-skip rule are the paper's. Here (1) admission is a separate gate
        that any scheduler uses; (2) estimates (prompt, cached tokens, output) are charged and corrected, so charges
        go down as well as up, and a refund cannot bring back credit from before a lift; (3) requests leave in every
        phase and come back when the engine is busy; (4) U is measured, not the worst case of a memory size; (5) the
        bound is stated for *delivered* service over any interval, which takes more than U.
    Past-future scheduling, Gong et al., ASPLOS 2025, https://arxiv.org/abs/2507.10150: the future peak of the gate.
        Here with one predicted length a request instead of a distribution, whole blocks, several sequences a request,
        and a limit that preemptions move.
    Equinox, https://arxiv.org/abs/2508.16646: dual counters, charged by prediction and settled by measurement. Neither
        code nor formulas could be had: `schedulers.equinox`, `mixture` and `mapper` are after it, not it.

The bound, in short (`bound` has the proof). After a dispatch f receives only what was in flight then, and at its last
dispatch c_f <= c_g; g lacks at most what it was charged and has not received. So from a moment when both were level

    |W_f/w_f - W_g/w_g| <= U/w_f + U/w_g,

and over any interval at most (A + P)/w_f + (A + P)/w_g + R, where P <= U is what a tenant has charged and undelivered,
A <= U what a dispatch adds beyond that, and R how far refunds let the lift lag. A + P is reached: one tenant may be
charged and late at the start of the interval and the other at its end.
"""
