"""See what a model looks at: the walk of one image through the network, and which places of it matter."""
