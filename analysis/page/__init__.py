"""The page: one run as one offline HTML file."""
