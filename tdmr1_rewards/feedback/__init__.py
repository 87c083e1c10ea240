"""People's likes and dislikes: the store of answers, and the page that asks for them. Nothing here needs torch."""
