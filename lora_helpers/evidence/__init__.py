"""For maintainers: what `make evidence` measures, and how the numbers get into the documents. No user's run needs it."""
