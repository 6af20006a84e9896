"""What every chapter must have and must not do, in its source and in its outputs."""
