"""What recipes share: the folder of a run, its figures, language models, scores."""
