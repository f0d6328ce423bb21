"""Labelled images as one table: where they come from, what is wrong with them, how they are split."""
