"""One module for each command: `add_arguments(parser)`, which imports nothing heavy, and
`run(arguments)`, which does the work and returns the exit code.

`freshscore.cli` has the table of commands and imports only the module that was asked for.
"""
