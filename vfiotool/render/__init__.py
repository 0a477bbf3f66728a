"""How what is known is shown: JSON documents and tables. No logic, no I/O but printing."""
