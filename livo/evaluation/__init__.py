"""Bias, toxicity and quality of images: metrics, judges, the runner and its reports."""
