"""Preference training: objectives, adapters, the step and the loop."""
