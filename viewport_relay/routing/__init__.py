"""Who hears whom. No I/O: values and a clock in, decisions out."""
