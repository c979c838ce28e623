"""The checker of annotations in tests: beartype, with an int where a float is asked for, as Python has it."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
