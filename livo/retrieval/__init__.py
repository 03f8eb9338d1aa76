"""Which principles apply to a prompt: the retriever and everything it reads."""
