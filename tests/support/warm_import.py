"""Importing this imports all that the command line imports; for `support.warm_processes`."""

from support.warm_cli import import_everything

import_everything()
