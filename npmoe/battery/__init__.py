"""What we hold against the judge ourselves: cases, golden files, oracles, frameworks, released models."""
