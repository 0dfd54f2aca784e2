"""What a delivery costs, here and with the peers, measured in the same run: ``python -m benchmarks --help``."""
