"""Model files: the backbone, the file, the engine that runs it, and predictions."""
