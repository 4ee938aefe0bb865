"""What users would pick instead, side by side: `python -m bench.compare`."""
