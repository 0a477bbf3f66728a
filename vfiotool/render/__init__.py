"""Output: JSON documents, tables, a run's progress and the report page. Formats and prints, no more."""
