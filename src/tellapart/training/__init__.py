"""From a data set and a recipe to a fitted model."""
