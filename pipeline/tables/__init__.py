"""The Parquet tables and the SQL over them. Every table of millions of rows is DuckDB's or Arrow's work, here."""
