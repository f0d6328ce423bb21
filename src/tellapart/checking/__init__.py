"""check: what is wrong with the images, worst first, as records, as a page and as a list of fixes."""
