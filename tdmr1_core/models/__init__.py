"""Foreign networks behind one call, and the roles that share them. Knows nothing of the algorithm."""
