"""What `audiomamba` does: each command parses, calls the library, prints."""
