"""For maintainers: how the bundled base model was made. Fine-tuning never runs it."""
