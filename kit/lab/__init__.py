"""Shared code of recipes: run folders, figures, language models, scores."""
