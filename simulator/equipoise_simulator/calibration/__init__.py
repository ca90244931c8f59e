"""From a running engine to a profile of it: probe, observe steps, fit."""
