"""The command line: ``python -m rootlet {batch,generate,chat,bench}``. Importing it loads no model code."""
