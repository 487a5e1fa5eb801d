"""hutch: a serverless container platform that its users own."""

__version__ = "0.1.0"
