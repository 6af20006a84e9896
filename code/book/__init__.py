"""How the book is built, executed and proved. `python -m book --help` lists the commands."""
