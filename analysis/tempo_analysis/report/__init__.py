"""What every report is made of: tables, figures, pages, files."""
