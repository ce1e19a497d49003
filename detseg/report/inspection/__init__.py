"""The page of `detseg inspect_data`: figures and tables from its report alone, pictures from the data set."""
