"""Importing this module imports everything that the command line imports. Used by `support.warm_processes`."""

from support.warm_cli import import_everything

import_everything()
