"""The report of a run: a page a person can read without knowing the tool, and a model card."""
