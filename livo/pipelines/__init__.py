"""diffusers pipelines with values: generation, loading, saving, attaching, records."""
