"""A model of vLLM's continuous batching, traces to feed it, and a stand-in engine that serves it over HTTP."""
