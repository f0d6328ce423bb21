"""The server: a page to drop photos on, and an HTTP interface for programs."""
