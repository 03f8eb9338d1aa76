"""Preference data: the dataset and its builder."""
