"""The command line: verbs over `tdmr1_core`. Importing it is cheap; torch loads with the verbs that need it."""
