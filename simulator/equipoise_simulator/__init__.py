"""A model of vLLM's continuous batching: simulations of the sidecar's schedulers on it, and a stand-in engine over HTTP."""
