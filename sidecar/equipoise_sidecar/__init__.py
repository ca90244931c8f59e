"""The scheduling sidecar: identifies, queues, dispatches, streams and settles the requests to one engine."""
