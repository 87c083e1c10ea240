"""Makes pages of the documentation site: commands, settings, API entries, source files, and equations as MathML."""
