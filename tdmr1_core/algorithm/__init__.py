"""The algorithm of the paper as pure functions of tensors. Imports only torch."""
