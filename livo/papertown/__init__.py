"""Papertown, the embedded world: its renderer, weights, judge and benchmark."""
