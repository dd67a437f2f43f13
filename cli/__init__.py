"""The command line: ``python -m rootlet {batch,generate,chat}``. Importing it loads no model code."""
