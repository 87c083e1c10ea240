"""What is decided before anything heavy is loaded: look-ups, checks and paths."""
