"""Papers reproduced, one folder a paper; `python -m npmoe.reproduce` is the command."""
