"""The demo: a real control plane, a fleet of engines with sidecars, a replayed trace, and what every tenant got of it."""
