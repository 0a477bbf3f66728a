"""The results of a run: the trace, statistics, the report and its verdict."""
