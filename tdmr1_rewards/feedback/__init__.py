"""Human feedback: the store of answers, the labelling page, and the reward `human`. None of it needs torch."""
