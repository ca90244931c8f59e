"""The operator: observe, compile, apply; level-triggered.

    kopf events ─ handlers ─> store ──┐ marks dirty
    listings ─── relist ────────┘     v
                              worker, one a policy ── compile (pure) ──> fleet ── push ──> sidecars
                              worker, one a namespace ─ placement (pure) ─┘  │
                                                                            └─ state ─> status (pure) ─> status_writer
    leader: a Lease; only its holder writes or pushes           issuer: certificates for sidecars, on every replica

`replica` puts it together. Nothing here reads a clock or a socket but the modules whose first lines say so.
"""
