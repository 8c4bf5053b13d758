"""A language model of one's own from the command line: trained, resumed, evaluated, sampled from."""
