"""How settings are read: the text of a file, and the sentences about what is wrong in it."""
